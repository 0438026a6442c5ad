"""A number, a flag and a text are taken for nothing else, in every section and every installed plugin."""

from __future__ import annotations

import typing
from enum import IntEnum
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, SecretStr, ValidationError
from rl_core.config.durations import Duration
from rl_core.config.run_section import RunSection
from rl_core.config.section import Section
from rl_core.config.sections import ModelConfig
from rl_core.discovery.registry import load_registry
from rl_plugin_kit.inspection import lax_models, with_nested


class Level(IntEnum):
    LOW = 1


class Part(Section):
    size: int = 0


class Sample(Section):
    count: int = Field(1, ge=0)
    rate: float = Field(0.5, ge=0)
    flag: bool = False
    text: str = ""
    secret: SecretStr | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    named: dict[str, int] = Field(default_factory=dict)
    keyed: dict[int, float] = Field(default_factory=dict)
    part: Part = Field(default_factory=Part)
    parts: tuple[Part, ...] = ()
    optional: int | None = None
    column: float | str = 0.0
    choice: Literal[0, 1, "auto"] = 0
    level: Level = Level.LOW
    wait: Duration = 1.0
    type: int = 0
    default: int = 0


INT64 = 2**63 - 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"count": 3}, 3),
        ({"count": 1e3}, 1000),
        ({"count": "16"}, 16),
        ({"count": INT64}, INT64),
        ({"rate": 1}, 1.0),
        ({"rate": "1e-6"}, 1e-6),
        ({"flag": "true"}, True),
        ({"pair": [1, "2"]}, (1.0, 2.0)),
        ({"keyed": {"1": 2}}, {1: 2.0}),
        ({"part": {"size": 2}}, Part(size=2)),
        ({"column": "1"}, "1"),
        ({"column": 1}, 1.0),
        ({"choice": 1}, 1),
        ({"level": 1}, Level.LOW),
        ({"wait": "3h50m"}, 13800.0),
        ({"type": 1}, 1),
        ({"default": 1}, 1),
    ],
)
def test_a_value_of_the_right_kind_is_taken_as_it_is(given, expected):
    found = getattr(Sample(**given), next(iter(given)))
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "given",
    [
        *({key: True} for key in ("count", "rate", "text", "secret", "optional", "column", "choice", "level", "wait")),
        *({key: True} for key in ("type", "default")),
        {"pair": [True, 1.0]},
        {"named": {"a": True}},
        {"keyed": {"1": False}},
        {"part": {"size": True}},
        {"parts": [{"size": True}]},
        *(
            {"count": value}
            for value in (1.5, "1_000", " 1", "1,000", "٣", "1.5", "", "1:30", INT64 + 1, 10**400, 1e30)
        ),
        *(
            {"rate": value}
            for value in ("1_0.0", "inf", float("nan"), float("inf"), 10**400, "1e400", "1e-400", ".nan")
        ),
        *({"flag": value} for value in (1, 0, 1.0, "yes", "on", "off", "no", "1", "t", "")),
        *({"text": value} for value in (1, 1.0, b"a")),
    ],
    ids=str,
)
def test_a_value_of_another_kind_is_refused(given):
    with pytest.raises(ValidationError):
        Sample(**given)


def _models() -> dict[str, type[BaseModel]]:
    """The config models of core and of every installed component, with those in their fields."""
    registry = load_registry()
    plugins = {f"{r.package}/{r.component.name}": registry.resolve(r.component.config) for r in registry.components()}
    given = {"run": RunSection, "model": ModelConfig, **plugins}
    return {f"{name}: {one.__name__}": one for name, model in given.items() for one in with_nested(model)}


def _holds(annotation: Any, wanted: type) -> bool:
    return annotation is wanted or any(_holds(part, wanted) for part in typing.get_args(annotation))


def test_no_number_of_any_installed_component_takes_true():
    numbers = 0
    for name, model in _models().items():
        for field, info in model.model_fields.items():
            annotation = info.annotation
            if _holds(annotation, bool) or not (_holds(annotation, int) or _holds(annotation, float)):
                continue
            numbers += 1
            with pytest.raises(ValidationError) as refused:
                model.model_validate({info.alias or field: True})
            refusals = [error["loc"][0] for error in refused.value.errors()]
            assert (info.alias or field) in refusals, f"{name}: {field}: true is taken as a number"
    assert numbers > 150


def test_no_number_of_any_installed_component_takes_text_that_yaml_does_not_read_as_one():
    for name, model in _models().items():
        for field, info in model.model_fields.items():
            annotation = info.annotation
            if _holds(annotation, str) or not (_holds(annotation, int) or _holds(annotation, float)):
                continue
            for text in ("1_000", " 1", "１", "1,000", "nan"):
                with pytest.raises(ValidationError) as refused:
                    model.model_validate({info.alias or field: text})
                refusals = [error["loc"][0] for error in refused.value.errors()]
                assert (info.alias or field) in refusals, f"{name}: {field}: {text!r} is taken as a number"


def test_every_model_of_any_installed_component_is_a_section():
    assert [where for model in _models().values() for where in lax_models(model)] == []


def test_no_flag_of_any_installed_component_takes_a_number():
    flags = 0
    for name, model in _models().items():
        for field, info in model.model_fields.items():
            if not _holds(info.annotation, bool) or _holds(info.annotation, int):
                continue
            flags += 1
            for value in (1, 0.0, "yes", "1"):
                with pytest.raises(ValidationError) as refused:
                    model.model_validate({field: value})
                refusals = [error["loc"][0] for error in refused.value.errors()]
                assert field in refusals, f"{name}: {field}: {value!r} is taken as a flag"
    assert flags > 20


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("run.steps=true", "command line: run.steps: must be a whole number, found true"),
        ("run.keep_last=yes", "command line: run.keep_last: must be a whole number, found 'yes'"),
        ("run.steps=1_000", "command line: run.steps: must be a whole number, found '1_000'\n    write 1000"),
        ("run.steps=1,000", "command line: run.steps: must be a whole number, found '1,000'\n    write 1000"),
        ("run.steps=1.5", "command line: run.steps: must be a whole number, found 1.5"),
        (f"run.seed={10**30}", f"command line: run.seed: must be a whole number that fits 64 bits, found {10**30}"),
        ("model.trust_remote_code=1", "command line: model.trust_remote_code: must be true or false, found 1\n"
         "    write true"),
        ("model.trust_remote_code=off", "command line: model.trust_remote_code: must be true or false, found 'off'\n"
         "    write false"),
        ("algorithm.learning_rate=1e-400", "command line: algorithm.learning_rate: cannot read '1e-400' as float"),
        ("algorithm.learning_rate=1e400", "command line: algorithm.learning_rate: cannot read '1e400' as float"),
        ("algorithm.learning_rate=.inf", "command line: algorithm.learning_rate: must be a finite number, found inf"),
        ("algorithm.learning_rate=true", "command line: algorithm.learning_rate: must be a number, found true"),
    ],
)  # fmt: skip
def test_what_the_check_says_about_a_value_of_another_kind(problems_of, base, override, line):
    assert problems_of(base, override) == [line]


@pytest.mark.parametrize("digits", ["9" * 5000, "-" + "9" * 5000, "0x" + "f" * 5000, "0." + "1" * 5000])
def test_a_number_of_thousands_of_digits_is_an_error_in_any_section(problems_of, base, digits):
    (problem,) = problems_of(base, f"run.seed={digits}")
    assert problem.startswith("command line: run.seed: cannot read ")


def test_a_number_from_the_environment_is_a_number(config_of, base, monkeypatch):
    monkeypatch.setenv("STEPS", "16")
    assert config_of(base, "run.steps=${env:STEPS}").stages[0].run.steps == 16
