"""What `rl plugin new` writes passes the suite of its kind, so that each mistake in the other tests is the only one."""

from __future__ import annotations

import pytest
from rl_core.component import KINDS
from rl_plugin_kit import suites
from rl_plugin_kit.outcome import rules
from rl_plugin_kit.scaffold.kinds import PLUGIN_KINDS


@pytest.mark.parametrize("kind", [kind.name for kind in PLUGIN_KINDS])
def test_a_generated_component_keeps_every_promise_of_its_kind(kind, findings):
    assert findings(kind, also=("backend",) if kind == "algorithm" else ()) == {}


def test_every_kind_has_a_suite_with_rules_of_its_own():
    common = set(rules(suites.ComponentConformance))
    for kind in KINDS:
        suite = suites.suite_of(kind)
        assert suite.kind == kind
        assert suite.__name__ in suites.__all__
        assert len(set(rules(suite)) - common) >= 4


def test_what_is_generated_names_the_suite_of_its_kind():
    for kind in PLUGIN_KINDS:
        assert kind.suite == suites.suite_of(kind.component).__name__


def test_a_component_that_is_not_installed_is_named(site):
    suite = type("TestMine", (suites.RewardConformance,), {"component": "unheard-of"})
    with pytest.raises(AssertionError) as caught:
        suite().build()
    assert str(caught.value) == ("TestMine.component: unknown reward 'unheard-of'\n    no reward is installed")


def test_fields_without_a_default_are_asked_for(generate):
    generate("data")
    suite = type("TestMine", (suites.DataSourceConformance,), {"component": "my-first"})
    with pytest.raises(pytest.skip.Exception) as caught:
        suite().build()
    assert str(caught.value) == (
        "data source 'my-first' has fields without a default: path; give them in the suite's `fields`, "
        "or with --set on the command line"
    )


def test_an_algorithm_without_a_backend_says_what_to_install(findings):
    reason = "algorithm 'my-first' needs a training backend to compute its loss: pip install rl-backend-fsdp2"
    assert set(findings("algorithm").values()) == {reason}
