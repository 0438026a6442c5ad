"""The example of a third party: installed by pip beside the framework, tested by its own tests, and it learns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from support import ROOT

PACKAGE = ROOT / "examples" / "plugins" / "rl-algo-bestofn"


def test_the_example_plugin_passes_its_tests_and_its_model_learns(installation):
    run_needs = ("rl-backend-fsdp2", "rl-generation-hf", "rl-data-text")
    installation.install("rl-algo-bestofn[test]", *run_needs)
    shutil.copytree(PACKAGE / "tests", installation.folder / "tests")
    said = installation.python("-m", "pytest", "--import-mode=importlib", "-q", "-p", "no:cacheprovider", "tests")
    assert int(said.splitlines()[-1].partition(" passed")[0]) >= 20
    assert "skipped" not in said
    for name in ("digits.yaml", "digits.jsonl"):
        shutil.copy(PACKAGE / name, installation.folder)
    installation.rl("run", "digits.yaml")
    rows = [json.loads(r) for r in Path(installation.folder, "runs/digits/metrics.jsonl").read_text().splitlines()]
    rewards = [row["rollout/reward_mean"] for row in rows]
    assert rewards[0] < 0.1
    assert rewards[-1] > 0.8
    assert rows[-1]["bestofn/selected_reward_mean"] > 0.9
