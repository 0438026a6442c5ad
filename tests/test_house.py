"""The rules of the house that no linter knows."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted(p for p in (ROOT / "packages").iterdir() if (p / "pyproject.toml").exists())
MODULES = {p.name: next((p / "src").iterdir()).name for p in PACKAGES}
MOST_LINES_OF_CORE = 16_000
BELOW_CORE = {"ray", "secrets"}
OUR_OWN_WORDS = {
    "beside": "with, or a name of the relation",
    "cell": "text, entry or device",
    "cells": "texts, entries or devices",
    "crew": "workers",
    "enlist": "add",
    "judged": "scored or checked",
    "meeting": "rendezvous",
    "mend": "fix",
    "mended": "fixed",
    "parcel": "message",
    "parcels": "messages",
    "pulse": "heartbeat",
    "subject": "component",
    "supply": "feed or data",
    "teach": "train",
    "teaches": "trains",
}
"""Words that only this project used for something, and what the field calls it."""


ELSEWHERE = {
    "mlflow": ["mlflow-skinny"],
    "opentelemetry": ["opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"],
    "pynvml": ["nvidia-ml-py"],
}
"""Modules of distributions with another name that only other environments have."""


def imports(path):
    """Top-level modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        for name in names:
            yield name.partition(".")[0]


def sources(package):
    return sorted((package / "src").rglob("*.py"))


def test_every_package_is_under_the_import_contracts():
    """The linter of imports leaves out, without a word, what its configuration does not list."""
    linted = tomllib.loads((ROOT / "importlinter.toml").read_text())["tool"]["importlinter"]
    assert sorted(linted["root_packages"]) == sorted(MODULES.values())
    layers = next(contract["layers"] for contract in linted["contracts"] if contract["id"] == "packages")
    assert sorted(re.findall(r"\w+", " ".join(layers))) == sorted(MODULES.values())
    circles = next(contract["ancestors"] for contract in linted["contracts"] if contract["id"] == "circles")
    assert sorted(circles) == sorted(MODULES.values())


def test_what_a_package_imports_is_among_its_dependencies():
    """Wherever in a file it is imported; an extra counts, for imports inside of functions and in the test kit."""
    distributions = ELSEWHERE | packages_distributions()
    undeclared = []
    for package in PACKAGES:
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        lines = chain(project["dependencies"], *project.get("optional-dependencies", {}).values())
        declared = {canonicalize_name(Requirement(line).name) for line in lines}
        for path in sources(package):
            for name in imports(path):
                if name in sys.stdlib_module_names or name == MODULES[package.name]:
                    continue
                if not declared & {canonicalize_name(one) for one in distributions.get(name, [name])}:
                    undeclared.append(f"{path.relative_to(ROOT)}: {name}")
    assert undeclared == []


def test_nothing_of_ray_is_used_that_ray_may_change_without_a_word():
    """Private and experimental modules and attributes, and the id of an actor handle, which has no public name."""
    hidden = re.compile(r"\bray(\.\w+)*\.(_(?!_)|experimental\b)|\._actor_id\b")
    found = []
    for package in PACKAGES:
        for path in sources(package):
            for node in ast.walk(ast.parse(path.read_text())):
                modules = []
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    modules = [f"{node.module}.{alias.name}" for alias in node.names]
                elif isinstance(node, ast.Attribute):
                    modules = [ast.unparse(node)]
                found += [f"{path.relative_to(ROOT)}:{node.lineno}: {name}" for name in modules if hidden.search(name)]
    assert found == []


def test_modules_and_functions_stay_small():
    long = []
    for package in PACKAGES:
        for path in sources(package):
            text = path.read_text()
            if text.count("\n") > 400:
                long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = node.end_lineno - node.lineno + 1
                    if lines > 70:
                        long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert long == []


def test_core_stays_small():
    """What a run needs, and nothing else: a capability is a package, found by a hook or an entry point."""
    lines = sum(path.read_text().count("\n") for path in sources(ROOT / "packages" / "core"))
    assert lines <= MOST_LINES_OF_CORE, "move what core can do without into a package; do not raise the bound"


def test_general_code_has_no_word_of_a_kernel():
    """What applies to some models, on some devices, is behind the seam: no kernel, its package or library is named."""
    kernels = [package for package in PACKAGES if package.name.startswith("kernels-")]
    assert {package.name for package in kernels} >= {"kernels-cpu", "kernels-liger"}
    named = [name for package in kernels for name in (f"rl-{package.name}", MODULES[package.name])]
    words = re.compile(
        "|".join([*named, r"liger|triton|onednn|mkldnn|\bmkl\b|ragged (rows|attention)|llama layers"]), re.I
    )
    found = []
    for package in PACKAGES:
        if package in kernels or package.name == "generation-vllm":
            continue
        for path in sources(package):
            lines = enumerate(path.read_text().splitlines(), 1)
            found += [
                f"{path.relative_to(ROOT)}:{number}: {line.strip()}" for number, line in lines if words.search(line)
            ]
    assert found == []


def test_every_package_has_what_a_package_needs():
    for package in PACKAGES:
        text = (package / "pyproject.toml").read_text()
        assert 'path = "../../VERSION"' in text, f"{package.name}: the version comes from one file"
        assert (package / "README.md").stat().st_size > 300, f"{package.name}: README"
        assert list((package / "tests").rglob("test_*.py")), f"{package.name}: tests"
        if package.name not in {"core", *BELOW_CORE}:
            assert '"rl-core>=0.1,<0.2"' in text


def names(path):
    """Every name that a file defines or uses, its own included."""
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text())):
        for field in ("name", "id", "attr", "arg", "module", "asname"):
            if isinstance(name := getattr(node, field, None), str):
                yield name


def test_names_are_the_words_that_the_field_uses():
    found = set()
    for path in chain.from_iterable(sources(package) for package in PACKAGES):
        for name in names(path):
            words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
            found |= {(str(path.relative_to(ROOT)), name, OUR_OWN_WORDS[word]) for word in words & set(OUR_OWN_WORDS)}
    assert found == set(), "say it as the last word of each"
