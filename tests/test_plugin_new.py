"""Every kind of plugin that `rl plugin new` writes can be installed, passes its own tests, and runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
from rl_core.cli.main import main
from rl_core.component import KINDS
from rl_plugin_kit.conformance import PluginConformance
from rl_plugin_kit.scaffold.kinds import PLUGIN_KINDS
from support import ROOT

RL = "import sys; from rl_core.cli.main import main; sys.exit(main())"
CONFIG = """\
run: {name: ours, steps: 2, cpus: 1}
model:
  init: {architecture: qwen2, hidden_size: 32, layers: 2, heads: 2}
  max_length: 16
tokenizer: {name: characters, vocab_size: 32}
backend: {name: mine}
generator: {name: mine, max_new_tokens: 4}
algorithm: {name: mine, prompts_per_step: 4, group_size: 4, learning_rate: 1.0e-3}
data: {name: mine, path: rows.txt}
eval_data: {name: mine, path: rows.txt}
rewards: [{name: mine, target_tokens: 2}]
evaluators: [{name: mine, max_new_tokens: 4}]
loggers: [{name: mine}]
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """`python(*arguments)` in a fresh environment with every generated package; it sees this environment's others."""
    pytest.importorskip("hatchling", reason="packages are built without downloading their build backend")
    folder = tmp_path_factory.mktemp("plugins")
    for kind in PLUGIN_KINDS:
        assert main(["plugin", "new", kind.name, "mine", "--directory", str(folder / kind.name)]) == 0
    venv.create(folder / "venv", with_pip=False)
    interpreter = folder / "venv" / "bin" / "python"
    installed = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    # addsitedir and not a path: it follows the .pth files of packages installed in editable mode.
    (installed / "host.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RL_PLUGINS")}

    def python(*arguments):
        done = subprocess.run(
            [interpreter, *arguments],
            cwd=folder,
            env=environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    packages = [f"./{kind.name}" for kind in PLUGIN_KINDS]
    python("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation", *packages)
    (folder / "rows.txt").write_text("".join(f"{n}+1=\t{n + 1}\n" for n in range(10)))
    (folder / "ours.yaml").write_text(CONFIG)
    python.folder = folder
    return python


@pytest.mark.slow
def test_every_generated_package_installs_and_passes_its_own_tests(python):
    listed = json.loads(python("-c", RL, "plugins", "--json"))["plugins"]
    ours = {plugin["package"]: plugin["status"] for plugin in listed if plugin["package"].endswith("-mine")}
    assert ours == {f"rl-{kind.name}-mine": "ok" for kind in PLUGIN_KINDS}
    folders = [kind.name for kind in PLUGIN_KINDS]
    # What needs Ray is in the run below, which has all of them.
    options = ["--import-mode=importlib", "--rootdir=.", "-q", "-p", "no:cacheprovider"]
    options += ["-k", "not a_ray_worker and not a_tiny_run"]
    said = python("-m", "pytest", *options, *folders)
    passed = int(said.splitlines()[-1].partition(" passed")[0])
    assert passed >= 21 * len(folders)  # the rules of packages, the promises of their kinds, and tests of their own
    assert "skipped" not in said


@pytest.mark.slow
def test_a_run_made_of_generated_plugins_trains(python):
    python("-c", RL, "run", "ours.yaml")
    lines = (python.folder / "runs" / "ours" / "metrics.csv").read_text().splitlines()
    assert lines[0] == "stage,step,metric,value"
    found = {tuple(line.split(",")[1:3]) for line in lines}
    assert found >= {("0", "eval/mine"), ("1", "train/loss"), ("2", "train/grad_norm"), ("2", "eval/mine")}
    assert (python.folder / "runs" / "ours" / "export" / "model.safetensors").is_file()


def test_the_walkthrough_names_every_kind_and_every_rule():
    text = (ROOT / "docs" / "writing-a-plugin.md").read_text()
    for kind in PLUGIN_KINDS:
        row = rf"^\| `{kind.name} NAME` \|.*\| {re.escape(kind.summary)} \|$"
        assert re.search(row, text, re.MULTILINE), kind.name
    table = text.partition("| rule | why |\n|---|---|\n")[2].partition("\n\n")[0]
    listed = [re.match(r"\| (?:the )?(.+?) \|", row)[1].lower().replace(" ", "_") for row in table.splitlines()]
    rules = [name.removeprefix("test_") for name in vars(PluginConformance) if name.startswith("test_")]
    assert listed == rules
    kinds = text.partition("| kind | among the promises |\n|---|---|\n")[2].partition("\n\n")[0]
    assert [row.split(" | ")[0].strip("| ") for row in kinds.splitlines()] == [one.replace("_", " ") for one in KINDS]
