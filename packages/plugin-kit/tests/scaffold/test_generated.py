"""What is generated for each kind: it keeps the rules of plugins and those of linters, and says what it does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from rl_core.config import sections
from rl_core.config.select import KIND_OF
from rl_core.discovery.registry import load_registry
from rl_plugin_kit.conformance import PluginConformance
from rl_plugin_kit.scaffold.kinds import PLUGIN_KINDS
from rl_plugin_kit.scaffold.names import LONGEST_NAME, find_kind, package_names
from rl_plugin_kit.scaffold.write import render_package, write_package

KINDS = [kind.name for kind in PLUGIN_KINDS]
LONG_NAMES = ("x", "my-first", "abcdefghij-" + "k" * (LONGEST_NAME - 11), "-".join("a" * (LONGEST_NAME // 2)))
CHECKS = [getattr(PluginConformance, name) for name in vars(PluginConformance) if name.startswith("test_")]


def rendered(kind: str, name: str = "my-first") -> dict[str, str]:
    files = render_package(package_names(find_kind(kind), name), core="0.1.0")
    return {str(path): text for path, text in files.items()}


def own_config(kind: str) -> type[sections.ComponentConfig]:
    registered = load_registry().find(find_kind(kind).component, "my-first")
    return load_registry().resolve(registered.component.config)


@pytest.mark.parametrize("name", LONG_NAMES)
def test_linter_and_formatter_find_nothing_whatever_the_name(name, tmp_path):
    for kind in KINDS:
        write_package(package_names(find_kind(kind), name), tmp_path / kind, core="0.1.0")
    for command in (["check"], ["format", "--check"]):  # each package has its settings in its pyproject.toml
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{name}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_compiles_and_leaves_nothing_open(kind):
    for path, text in rendered(kind).items():
        assert text.endswith("\n"), path
        assert not text.endswith("\n\n"), path
        assert not re.search(r"\$[a-z_{]|__module__|TODO|NotImplementedError", text.replace("${{ matrix", "")), path
        if path.endswith(".py"):
            compile(text, path, "exec")
    assert yaml.safe_load(rendered(kind)[".github/workflows/test.yml"])["jobs"]["test"]["steps"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_generated_package_passes_the_conformance_kit(kind, generate):
    names, _ = generate(kind)
    settings = {"my-first": {"path": "rows.txt"}} if kind == "data" else {}
    suite = type("Suite", (PluginConformance,), {"package": names.package, "settings": settings})()
    assert len(CHECKS) >= 12
    for check in CHECKS:
        check(suite)


@pytest.mark.parametrize("kind", KINDS)
def test_a_generated_package_offers_one_component_that_can_be_built(kind, generate):
    names, folder = generate(kind)
    registry = load_registry()
    found = [one for one in registry.components() if one.package == names.package]
    assert [(one.component.kind, one.component.name) for one in found] == [(names.kind.component, "my-first")]
    component = found[0].component
    if missing := registry.missing_imports(component):
        pytest.skip(f"not installed: {', '.join(missing)}")
    given = {"path": str(folder / "rows.txt")} if kind == "data" else {}
    config = registry.resolve(component.config)(name="my-first", **given)
    built = registry.resolve(component.factory)(config)
    assert type(built).__name__ == names.class_name
    assert built.config == config


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_package_imports_is_among_its_dependencies(kind):
    files = rendered(kind)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    required = {re.split(r"[\[<>=]", one)[0].replace("-", "_") for one in project["dependencies"]}
    for_tests = required | {"pytest", "tokenizers"}  # of rl-plugin-kit and transformers
    for_tests |= {re.split(r"[\[<>=]", one)[0].replace("-", "_") for one in project["optional-dependencies"]["test"]}
    for path, text in files.items():
        if not path.endswith(".py"):
            continue
        allowed = (required if path.startswith("src/") else for_tests) | set(sys.stdlib_module_names)
        assert imported(text) - allowed == ({f"rl_{kind}_my_first"} & imported(text)), path


def imported(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_in_the_readme_is_a_valid_section(kind, generate):
    generate(kind)
    example = re.search(r"```yaml\n(.*?)```", rendered(kind)["README.md"], re.DOTALL)
    ((section, value),) = yaml.safe_load(example[1]).items()
    assert KIND_OF[section] == find_kind(kind).component
    given = value[0] if isinstance(value, list) else value
    assert own_config(kind)(**given).name == "my-first"


def test_the_example_of_the_environment_runs(generate):
    generate("environment")
    names = {}
    exec(re.search(r"```python\n(.*?)```", rendered("environment")["README.md"], re.DOTALL)[1], names)
    assert [message["role"] for message in names["turn"].messages] == ["user"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_is_in_the_readme(kind, generate):
    generate(kind)
    model, readme = own_config(kind), rendered(kind)["README.md"]
    options = set(model.model_fields) - set(sections.ComponentConfig.model_fields) - {"preset"}
    assert [name for name in sorted(options) if f"`{name}`" not in readme] == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_licence_is_left_to_the_user(kind):
    files = rendered(kind)
    assert "license" not in tomllib.loads(files["pyproject.toml"])["project"]
    assert not [path for path in files if "LICENSE" in Path(path).name]
    assert "None is chosen yet." in files["README.md"]
