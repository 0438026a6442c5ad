"""What surrounds the code keeps up with it: workflows, hooks, licences, owners, versions."""

import re
import tomllib
import warnings
from fnmatch import fnmatch

import pytest
import yaml
from doc_commands import scripts
from packaging.requirements import Requirement
from packaging.version import Version
from support import ROOT

PROJECTS = {path.parent: tomllib.loads(path.read_text())["project"] for path in ROOT.glob("packages/*/pyproject.toml")}
HATCH = tomllib.loads((ROOT / "hatch.toml").read_text())["envs"]
WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in ROOT.glob(".github/workflows/*.yml")}
VERSION = Version((ROOT / "VERSION").read_text().strip())
CONSTRAINTS = map(Requirement, re.findall(r"^\w.*", (ROOT / "constraints.txt").read_text(), re.M))
PINNED = {one.name.lower(): one for one in CONSTRAINTS}


def version_of(requirement):
    """The one version that ``name==version`` allows."""
    return Version(next(iter(requirement.specifier)).version)


def commands(workflow):
    """Every shell line of a workflow, its matrix and environment filled in."""
    for job in workflow["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        for step in job["steps"]:
            line = step.get("run", "")
            for name, value in step.get("env", {}).items():
                line = line.replace(f"${{{name}}}", value)
            (key, values) = next(((k, v) for k, v in matrix.items() if f"matrix.{k} " in line), ("", [""]))
            for value in values:
                yield line.replace(f"${{{{ matrix.{key} }}}}", value)


def asked_for(lines):
    """The scripts of hatch.toml in shell lines, as ``environment:script``."""
    return {found for line in lines for found in re.findall(r'hatch run "?([\w:-]+)', line)}


def all_asked_for():
    return set().union(*(asked_for(commands(workflow)) for workflow in WORKFLOWS.values()))


def test_every_part_of_the_local_check_is_in_a_workflow():
    parts = asked_for((ROOT / ".ci" / "run").read_text().splitlines())
    assert {"lint", "test", "installs", "docs:build", "vllm:test", "kernels-liger:test", "trackers:test"} <= parts
    assert parts - all_asked_for() == set()
    assert {"nightly", "minimum:test", "newest:test"} <= all_asked_for()


def test_the_guard_against_losing_speed_runs_at_night_when_the_tests_are_over():
    assert HATCH["default"]["scripts"]["nightly"][-1] == "bench-guard"
    assert "bench-guard" not in (ROOT / ".ci" / "run").read_text()


def test_workflows_ask_only_for_scripts_that_exist():
    missing = []
    for name in all_asked_for():
        environment, _, script = name.rpartition(":")
        if script not in scripts(environment or "default"):
            missing.append(name)
    assert missing == []


def test_every_package_is_in_an_environment_that_workflows_test():
    vllm = HATCH["vllm"]
    tested = [HATCH[name] for name in ("default", "vllm", "kernels-liger", "trackers")]
    patterns = [pattern for one in tested for pattern in one["workspace"]["members"]]
    patterns += re.findall(r"--editable (\S+)", " ".join(vllm["scripts"]["setup"]))
    folders = [str(folder.relative_to(ROOT)) for folder in PROJECTS]
    assert [one for one in folders if not any(fnmatch(one, pattern) for pattern in patterns)] == []


def test_workflows_test_every_python_that_packages_ask_for_and_the_newest():
    tested = WORKFLOWS["ci.yml"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    for folder, project in PROJECTS.items():
        assert project["requires-python"] == f">={tested[0]}", folder.name
    assert tested == sorted(tested, key=Version)


def test_workflows_pin_actions_by_commit_and_may_only_read():
    for name, workflow in WORKFLOWS.items():
        assert workflow["permissions"] == {"contents": "read"}, name
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"] <= 360
            for step in job["steps"]:
                assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step.get("uses", "a@" + "0" * 40)), step


@pytest.mark.parametrize("folder", sorted(PROJECTS), ids=lambda folder: folder.name)
def test_every_package_carries_the_licence(folder):
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert PROJECTS[folder]["license"] == "Apache-2.0"
    assert PROJECTS[folder]["license-files"] == ["LICENSE"]


def test_every_file_that_names_the_version_names_the_same():
    assert Version(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == VERSION
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert Version(newest[1]) == VERSION
    low = (0, VERSION.minor) if VERSION.major == 0 else (VERSION.major,)
    high = (*low[:-1], low[-1] + 1)
    wanted = {f">={'.'.join(map(str, low))}", f"<{'.'.join(map(str, high))}"}
    for folder, project in PROJECTS.items():
        for one in map(Requirement, project["dependencies"]):
            if one.name.startswith("rl-"):
                assert {str(part) for part in one.specifier} == wanted, f"{folder.name}: {one}"


def test_packages_say_how_old_a_dependency_may_be_and_allow_the_one_that_is_tested():
    for folder, project in PROJECTS.items():
        for one in map(Requirement, project["dependencies"]):
            assert {part.operator for part in one.specifier} & {">=", "=="}, (
                f"{folder.name}: {one} has no lowest version"
            )
            if one.name.lower() in PINNED:
                assert one.specifier.contains(version_of(PINNED[one.name.lower()])), f"{folder.name}: {one}"


def test_pins_are_the_same_everywhere():
    lines = [line for environment in HATCH.values() for line in environment.get("dependencies", ())]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lines += [line for hook in hooks for line in hook.get("additional_dependencies", ())]
    exact = [one for one in map(Requirement, lines) if "==" in str(one.specifier)]
    known = [one for one in exact if one.name.lower() in PINNED]
    assert {"torch", "transformers", "ray", "ruff"} <= {one.name for one in known}
    assert [str(one) for one in known if version_of(one) != version_of(PINNED[one.name.lower()])] == []
    assert all("==" in line for hook in hooks for line in hook.get("additional_dependencies", ()))


def test_owners_are_named_for_places_that_exist():
    lines = (ROOT / ".github" / "CODEOWNERS").read_text().splitlines()
    rules = [line.split() for line in lines if line and not line.startswith("#")]
    assert rules[0][0] == "*"
    assert [path for path, *_ in rules[1:] if not (ROOT / path.lstrip("/")).exists()] == []
    assert all(owners for _, *owners in rules)


def test_types_are_checked_in_every_module_of_every_package():
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert "packages/*/src" in mypy["files"]
    assert not {"exclude", "ignore_errors", "disable_error_code"} & set(mypy)
    assert mypy.get("overrides", []) == []
    sources = [
        path for path in ROOT.glob("packages/*/src/**/*.py") if re.search(r"# mypy:|^# type: ignore", path.read_text())
    ]
    assert sources == []


@pytest.mark.parametrize("category", [UserWarning, RuntimeWarning, SyntaxWarning, DeprecationWarning, FutureWarning])
def test_a_warning_fails_the_test_that_it_comes_from(category):
    with pytest.raises(category, match="something is wrong"):
        warnings.warn("something is wrong", category, stacklevel=1)
