"""Mutations of valid configs: each is valid as what it says, or refused with problems, in seconds."""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from mutations import SFT, STAGES, Case, mutate, seeds
from rl_core.discovery.registry import Registry, load_registry
from rl_core.preflight.check import CheckResult, check
from rl_secrets.redaction import REDACTED

EXAMPLES = Path(__file__).parents[4] / "examples"
TEXT_FOR_NUMBERS = ("save_before_timeout", "heartbeat_timeout", "wait_for_resources")
FLAG_FOR_TEXT = ("activation_checkpointing",)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


@pytest.fixture(scope="module")
def configs(registry) -> list[dict[str, Any]]:
    made = seeds([(one.component.kind, one.component.name) for one in registry.components()])
    return made + [yaml.safe_load(path.read_text()) for path in sorted(EXAMPLES.glob("*.yaml"))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "rows.py").write_text(
        "def rows(): return []\ndef reward(samples): return []\ndef tool(x): return x\nclass Game: pass\n"
    )
    return tmp_path


def attempt(case: Case, registry: Registry) -> CheckResult:
    """Check ``case``; raises where the answer is none of those allowed."""
    for name, text in case.files.items():
        Path(name).write_text(text, encoding="utf-8", errors="surrogatepass")
    began = time.process_time()
    result = check("c.yaml", case.overrides, registry)
    assert time.process_time() - began < 5
    assert (result.config is None) == bool(result.errors)
    for problem in result.problems:
        assert str(problem)
        assert problem.where or problem.message.startswith("and "), problem
    if result.config is not None:
        for plan in result.plans:
            plan.render(result.config, registry)
        _comes_back(result, registry)
        if case.tree is not None:
            _means_what_it_says(case.tree, result.config.document, ())
    return result


def _comes_back(result: CheckResult, registry: Registry) -> None:
    text = result.config.to_yaml()
    if REDACTED in text:
        return
    Path("again.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    again = check("again.yaml", [], registry)
    assert again.config is not None, again.problems
    assert repr(again.config.document) == repr(result.config.document)  # NaN is not equal to itself
    assert again.config.to_yaml() == text


def _means_what_it_says(given: Any, taken: Any, path: tuple[Any, ...]) -> None:
    """Every value that was given, as far as the config has it, is of its own kind there."""
    if isinstance(given, dict) and isinstance(taken, dict):
        for key in given.keys() & taken.keys():
            _means_what_it_says(given[key], taken[key], (*path, key))
    elif isinstance(given, list) and isinstance(taken, list) and len(given) == len(taken):
        for index, (one, other) in enumerate(zip(given, taken, strict=True)):
            _means_what_it_says(one, other, (*path, index))
    elif isinstance(given, bool) or isinstance(taken, bool):
        same = given is taken or given == str(taken).lower() or path[-1] in FLAG_FOR_TEXT
        assert same, f"{path}: {given!r} is taken as {taken!r}"
    elif isinstance(given, int | float):
        assert isinstance(taken, int | float), f"{path}: {given!r} is taken as {taken!r}"
        nearest = float(given) if isinstance(taken, float) else given  # a float64 holds no more digits
        assert nearest == taken or nearest != nearest, f"{path}: {given!r} is taken as {taken!r}"
    elif isinstance(given, str) and isinstance(taken, int | float) and path[-1] not in TEXT_FOR_NUMBERS:
        assert "${" in given or _number(given) == taken, f"{path}: {given!r} is taken as {taken!r}"


def _number(text: str) -> float:
    return int(text, 0) if text[:2] in ("0x", "0o") else float(text)


def run_many(count: int, start: int, configs, registry) -> int:
    """Try ``count`` mutations; the number of those that are valid."""
    valid = 0
    for number in range(start, start + count):
        rng = random.Random(number)
        case = mutate(rng.choice(configs), rng)
        try:
            valid += attempt(case, registry).config is not None
        except Exception as error:
            error.add_note(f"mutation {number}: {case.overrides}\n{case.files['c.yaml']}")
            raise
    return valid


def test_a_shared_section_without_keys_is_refused_where_every_stage_has_its_own(registry, folder):
    (folder / "c.yaml").write_text(yaml.safe_dump({**STAGES, "run": 2}))
    assert [str(one) for one in check("c.yaml", [], registry).errors] == [
        "c.yaml:16: run: must be a mapping of keys to values\n    remove run, or give it keys"
    ]


def test_numbers_that_are_not_finite_are_kept_in_arguments_of_functions(registry, folder):
    data = {"name": "python", "function": "rows.py:rows", "arguments": {"a": float("nan"), "b": [float("-inf")]}}
    result = attempt(Case({"c.yaml": yaml.safe_dump({**SFT, "data": data})}), registry)
    assert repr(result.config.document["data"]["arguments"]) == "{'a': nan, 'b': [-inf]}"


def test_most_seeds_are_valid(configs, registry, folder):
    logging.disable(logging.WARNING)
    valid = sum(attempt(Case({"c.yaml": yaml.safe_dump(one)}), registry).config is not None for one in configs)
    logging.disable(logging.NOTSET)
    assert valid > len(configs) * 0.6


def test_mutations_are_valid_or_refused(configs, registry, folder):
    assert 30 < run_many(300, 0, configs, registry) < 270


@pytest.mark.nightly
def test_ten_thousand_mutations_are_valid_or_refused(configs, registry, folder):
    assert run_many(10_000, 1_000_000, configs, registry) > 1000
