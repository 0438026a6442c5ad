"""``rl --help`` and ``rl plugins`` stay light: measured in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

_PROBE = """
import json, sys, time
started = time.process_time()
from rl_core.cli.main import main
code = main(json.loads(sys.argv[1]))
took = time.process_time() - started
sys.stderr.write("PROBE" + json.dumps({"code": code, "took": took, "modules": sorted(sys.modules)}))
"""
_CPU = "import time; started = time.process_time(); {}; print(time.process_time() - started)"
_HEAVY = {"ray", "pydantic", "torch", "transformers", "numpy", "vllm", "pandas"}


def start(*arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, json.dumps(arguments)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stderr.rpartition("PROBE")[2]) | {"stdout": done.stdout}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["plugins"],
        ["plugins", "--json"],
        ["run", "--help"],
        ["plugin", "new", "--help"],
        ["cluster", "start", "--help"],
    ],
)
def test_listing_commands_import_nothing_heavy(arguments):
    seen = start(*arguments)
    assert seen["code"] == 0
    assert _HEAVY & set(seen["modules"]) == set()


def test_help_does_not_import_rich():
    assert "rich" not in start("--help")["modules"]


def test_help_costs_less_cpu_than_importing_ray_alone():
    """A ratio in one run: seconds would depend on the machine."""
    ray = subprocess.run([sys.executable, "-c", _CPU.format("import ray")], capture_output=True, text=True, check=True)
    assert min(start("--help")["took"] for _ in range(3)) < 0.5 * float(ray.stdout)


def test_the_core_imports_no_pytest():
    assert "pytest" not in start("plugins")["modules"]


def test_every_command_is_in_the_help():
    text = start("--help")["stdout"]
    for command in (
        "run",
        "check",
        "resume",
        "eval",
        "export",
        "plugins",
        "schema",
        "doctor",
        "runs",
        "plugin",
        "cluster",
    ):
        assert f"\n  {command} " in text
    assert "..." not in text.partition("Commands:")[2]
