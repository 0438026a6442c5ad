import pytest
from pydantic import Field
from rl_algo_common.applicability import Rule, refuse, without_effect
from rl_core.config.sections import Section


class Inner(Section):
    size: int | None = Field(None, alias="in", description="")


class Outer(Section):
    mode: str = Field("off", description="")
    depth: int | None = Field(None, description="")
    inner: Inner = Field(default_factory=Inner, description="")


RULES = (
    Rule(("depth", "inner.in"), lambda c: c.mode == "on", "with mode {c.mode}", "set mode: on or remove {key}"),
    Rule(("depth",), lambda c: c.mode != "broken", "in that mode"),
)


def test_messages_name_the_key_the_reason_and_what_to_type():
    config = Outer(mode="broken", depth=2, inner={"in": 3})
    assert without_effect(config, RULES) == [
        "depth has no effect with mode broken; set mode: on or remove depth",
        "inner.in has no effect with mode broken; set mode: on or remove inner.in",
        "depth has no effect in that mode; remove depth",
    ]


def test_fields_that_were_not_given_or_are_null_are_fine():
    assert without_effect(Outer(), RULES) == []
    assert without_effect(Outer(depth=None, inner={"in": None}), RULES) == []
    assert without_effect(Outer(mode="on", depth=2, inner={"in": 3}), RULES) == []


def test_only_values_other_than_the_presets_count():
    config = Outer(depth=2, inner={"in": 3})
    assert without_effect(config, RULES[:1], preset={"depth": 2, "inner": {"in": 4}}) == [
        "inner.in has no effect with mode off; set mode: on or remove inner.in"
    ]


def test_fields_of_a_section_below_can_be_named_in_full():
    rule = Rule(("in",), lambda c: c.size != 1, "at {c.size}")
    assert without_effect(Inner(**{"in": 1}), [rule], prefix="inner.") == [
        "inner.in has no effect at 1; remove inner.in"
    ]


def test_messages_are_raised_together():
    refuse([])
    with pytest.raises(ValueError, match=r"^one\n    two$"):
        refuse(["one", "two"])
