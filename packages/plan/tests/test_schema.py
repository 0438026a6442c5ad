from __future__ import annotations

import json
import logging

import jsonschema
import pytest
import yaml
from rl_core.discovery.registry import load_registry
from rl_plan.schema import json_schema

REWARD = """
from rl_core.component import Component
from rl_core.hookspecs import hookimpl

@hookimpl
def register_rewards():
    return [Component("reward", "length", "{module}.reward:Length", "{module}.config:LengthConfig", "Length")]
"""
REWARD_CONFIG = """
from rl_core.config.sections import RewardConfig

class LengthConfig(RewardConfig):
    pass
"""


@pytest.fixture
def accepts(registry, caplog):
    with caplog.at_level(logging.ERROR):
        validator = jsonschema.Draft202012Validator(json_schema(registry))
    return lambda text: validator.is_valid(yaml.safe_load(text))


def test_the_schema_is_valid_and_plain_json(registry):
    schema = json_schema(registry)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema


def test_a_section_lists_its_components_by_name(registry):
    variants = json_schema(registry)["$defs"]["section.algorithm"]["oneOf"]
    assert [variant["properties"]["name"] for variant in variants] == [
        {"enum": ["clip", "acme-kit/clip"], "description": "The clip algorithm"},
        {"enum": ["imitate", "acme-kit/imitate"], "description": "The imitate algorithm"},
    ]
    assert all(variant["additionalProperties"] is False for variant in variants)
    assert "in" in json_schema(registry)["$defs"]["acme-kit.algorithm.clip.KlConfig"]["properties"]


def test_a_component_whose_config_is_broken_is_left_out_with_a_warning(registry, caplog):
    names = [
        v["properties"]["name"]["enum"][0] for v in json_schema(registry)["$defs"]["section.rewards"]["items"]["oneOf"]
    ]
    assert names == ["crashing", "digits", "ordered"]
    assert caplog.messages == [
        "reward 'gone' of package acme-kit is left out of the schema: EnvironmentProblem: acme-kit: "
        "module 'acme_kit' has no 'GoneConfig' pip install --upgrade acme-kit",
        "reward 'shapeless' of package acme-kit is left out of the schema: AttributeError: "
        "type object 'NoComponentConfig' has no attribute 'model_json_schema'",
    ]


def test_a_name_that_two_packages_offer_is_written_with_its_package(install):
    for package in ("rl-x-one", "rl-x-two"):
        module = package.replace("-", "_")
        install(package, REWARD.format(module=module), files={"config.py": REWARD_CONFIG})
    variants = json_schema(load_registry())["$defs"]["section.rewards"]["items"]["oneOf"]
    assert [variant["properties"]["name"]["enum"] for variant in variants] == [
        ["rl-x-one/length"],
        ["rl-x-two/length"],
    ]


@pytest.mark.parametrize(
    "more",
    [
        "",
        "loggers: [{name: remote, project: x}]\n",
        "tokenizer: {name: letters}\n",
        "generator: null\n",
        "stages: [{name: a}, {name: b, algorithm: {rows_per_step: 3}, run: {steps: 2}, generator: null}]\n",
        "stages: [{name: b, algorithm: {name: clip, group_size: 4}}]\n",
    ],
)
def test_good_configs_pass(accepts, base, more):
    assert accepts(base + more)


def test_partial_sections_pass_only_where_they_are_merged(accepts):
    assert accepts("extends: base.yaml\nrun: {seed: 1}\nalgorithm: {rows_per_step: 3}\n")
    assert accepts("extends: [a.yaml, b.yaml]\n")
    assert not accepts("run: {seed: 1}\nalgorithm: {rows_per_step: 3}\n")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: imitate", "name: imitat"),
        ("name: imitate", "name: imitate, group_size: 3"),
        ("name: imitate", "rows_per_step: 3"),
        ("steps: 10", "steps: -1"),
        ("steps: 10", "seed: 0"),
        ("path: train.txt", "file: train.txt"),
        ("backend: {name: tiny}", "loggers: []"),
        ("backend: {name: tiny}", "backend: [{name: tiny}]"),
        ("backend: {name: tiny}", "backend: {name: tiny}\nloggers: {name: remote}"),
        ("backend: {name: tiny}", "backend: {name: tiny}\nbackends: {name: tiny}"),
        ("backend: {name: tiny}", "backend: {name: tiny}\nstages: [{algorithm: {name: clip}}]"),
        ("backend: {name: tiny}", "backend: {name: tiny}\nstages: [{name: a, algorithm: {name: clip, grup: 1}}]"),
        ("backend: {name: tiny}", "backend: {name: tiny}\nstages: [{name: a, stages: []}]"),
    ],
)
def test_bad_configs_fail(accepts, base, old, new):
    assert old in base
    assert not accepts(base.replace(old, new))


@pytest.mark.parametrize(
    "more",
    [
        "run: {steps: 3, name: 'seed${run.seed}-${now}', seed: '${env:SEED}', require: 'eval/accuracy >= 0.5'}\n",
        "run: {steps: '${env:STEPS:3}', require: ['eval/accuracy >= 0.5']}\n",
    ],
)
def test_values_that_are_filled_in_later_pass(accepts, base, more):
    assert accepts("".join(line for line in base.splitlines(keepends=True) if not line.startswith("run:")) + more)


def test_a_text_without_a_variable_is_still_no_number(accepts, base):
    rest = "".join(line for line in base.splitlines(keepends=True) if not line.startswith("run:"))
    assert not accepts(rest + "run: {steps: many}\n")
    assert not accepts(rest + "run: {steps: 3, name: a b}\n")
