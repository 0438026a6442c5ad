"""Kinds and names as they are typed."""

from __future__ import annotations

import pytest
from rl_core.component import KINDS
from rl_core.errors import ConfigError
from rl_plugin_kit.scaffold.kinds import PLUGIN_KINDS
from rl_plugin_kit.scaffold.names import LONGEST_NAME, PackageNames, find_kind, package_names


def refused(kind: str, name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        package_names(find_kind(kind), name)
    return str(caught.value)


def test_every_name_in_a_package_follows_from_kind_and_name():
    names = package_names(find_kind("reward"), "best-of-2")
    assert (names.package, names.module, names.class_name, names.identifier) == (
        "rl-reward-best-of-2",
        "rl_reward_best_of_2",
        "BestOf2Reward",
        "best_of_2",
    )


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [("reward", "length-reward", "LengthReward"), ("reward", "reward", "RewardReward"), ("data", "csv", "CsvSource")],
)
def test_a_class_name_says_its_kind_once_and_is_never_that_of_a_base_class(kind, name, expected):
    assert package_names(find_kind(kind), name).class_name == expected


def test_a_kind_can_be_typed_by_the_name_of_its_component():
    assert find_kind("data_source") == find_kind("data")


def test_every_kind_but_tokenizers_and_rollout_sources_has_templates():
    assert {kind.component for kind in PLUGIN_KINDS} == set(KINDS) - {"tokenizer", "rollout"}


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("algoritm", "did you mean 'algorithm'? "), ("loggers", "did you mean 'logger'? "), ("trainer", "")],
)
def test_an_unknown_kind_gets_a_proposal(typed, hint):
    assert refused(typed, "x") == (
        f"there is no kind of plugin {typed!r}\n    {hint}choose one of "
        "algorithm, backend, generator, data, reward, environment, evaluator, logger"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("BestOfN", ", for example best-of-n"),
        ("best_of_n", ", for example best-of-n"),
        ("best--of", ", for example best-of"),
        ("-best", ", for example best"),
        ("2nd try", ", for example nd-try"),
        ("../evil", ", for example evil"),
        ("best\n", ", for example best"),
        ("42", ""),
        ("größe", ", for example gr-e"),
        ("", ""),
    ],
)
def test_a_name_that_no_package_can_have_is_refused(name, hint):
    assert refused("reward", name) == (
        f"{name!r} is not a valid package name\n"
        f"    write it with lower-case letters, digits and single hyphens, beginning with a letter{hint}"
    )


def test_a_name_is_refused_from_the_first_character_too_many():
    longest = "a" * LONGEST_NAME
    assert package_names(find_kind("reward"), longest) == PackageNames(find_kind("reward"), longest)
    assert refused("reward", longest + "a") == (
        f"'{longest}a' is not a valid package name: it has 33 characters, 32 are allowed\n"
        "    choose a shorter one; the summary in plugin.py has room for the rest"
    )


def test_the_prefix_is_not_added_twice():
    assert refused("reward", "rl-reward-length") == (
        "the package would be called rl-reward-rl-reward-length: rl-reward- is added to the name\n"
        "    rl plugin new reward length"
    )
