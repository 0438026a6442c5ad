"""The tiny run through the framework: with components in numpy, so that its workers start in a moment."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from rl_plugin_kit.packages import write_plugin
from rl_plugin_kit.selection import CannotRun, sections_for

pytestmark = pytest.mark.slow

PLUGIN = """
from rl_core.component import Component
from rl_core.hookspecs import hookimpl

def _one(kind, name, **more):
    return Component(kind, name, f"rl_x_run.parts:{name}", f"rl_x_run.config:{name}Config", name, **more)

@hookimpl
def register_algorithms():
    return [_one("algorithm", "Count", needs=("data",))]

@hookimpl
def register_backends():
    return [_one("backend", "Slope")]

@hookimpl
def register_tokenizers():
    return [_one("tokenizer", "Letters")]

@hookimpl
def register_data_sources():
    return [_one("data_source", "Questions")]
"""
CONFIG = """
from rl_core.config.sections import AlgorithmConfig, BackendConfig, ComponentConfig
from rl_core.contracts.algorithm import BatchPlan

class CountConfig(AlgorithmConfig):
    def plan(self):
        return BatchPlan(input="examples", rows_per_step=4)

class SlopeConfig(BackendConfig):
    pass

class LettersConfig(ComponentConfig):
    pass

class QuestionsConfig(ComponentConfig):
    pass
"""
PARTS = """
import json
from pathlib import Path
import numpy as np
from rl_core.algorithm import AlgorithmBase, mean_metrics
from rl_core.contracts.backend import LossSpec, Topology, TrainResult, WeightBucket
from rl_core.contracts.model import ModelInfo, Role
from rl_core.batch import SequenceBatch
from rl_plugin_kit.letters import LetterTokenizer
from rl_plugin_kit.rows import questions

class Letters(LetterTokenizer):
    def __init__(self, config):
        self.config = config

class Questions:
    def __init__(self, config):
        self.config = config

    def load(self):
        return questions()

    def fingerprint(self):
        return "questions"

    def report(self):
        return {"rows": 16, "skipped": 0}

class Count(AlgorithmBase):
    steps = 0

    def roles(self):
        return (Role("policy", trainable=True),)

    def encode(self, rows, tokenizer):
        tokens, masks = zip(*(tokenizer.encode_example(row, "completion") for row in rows))
        return SequenceBatch.from_lists(tokens, token_columns={"loss_mask": masks})

    def step(self, batch, models):
        self.steps += 1
        metrics = mean_metrics([models["policy"].train(batch, LossSpec("json:dumps"))])
        return metrics | {"policy/steps": float(self.steps)}

    def state(self):
        return {"steps": self.steps}

    def load_state(self, state):
        self.steps = state["steps"]

class Slope:
    def __init__(self, config):
        self.config = config

    def setup(self, context):
        return Topology(0, 1)

    def load(self, role, model, optimizer):
        self.weight, self.momentum = 0.0, 1.0
        return ModelInfo(parameters=1, max_length=0, vocab_size=model.vocab_size)

    def train(self, role, shard, loss, scale):
        self.momentum *= 0.5
        self.weight += self.momentum * len(shard.tokens)
        return TrainResult({"loss": self.weight}, {"grad_norm": self.momentum, "learning_rate": 0.1})

    def save(self, role, directory):
        (Path(directory) / "weight.json").write_text(json.dumps([self.weight, self.momentum]))

    def restore(self, role, directory):
        self.weight, self.momentum = json.loads((Path(directory) / "weight.json").read_text())

    def is_saving(self):
        return False

    def finish_saving(self):
        pass

    def export(self, role, directory):
        (Path(directory) / "model.safetensors").write_bytes(np.float64(self.weight).tobytes())

    def close(self):
        pass
"""


SCRIPT = """
import json, os, sys
from pathlib import Path
from rl_plugin_kit.ray_worker import ray_for_checks
from rl_plugin_kit.tiny_run import check_tiny_run

found = {}
with ray_for_checks():
    for name in sys.argv[1:]:
        os.environ["RL_PLUGINS"] = name  # the workers see all of them
        Path(name).mkdir()
        try:
            found[name] = check_tiny_run("backend 'Slope'", "backend", {"name": "Slope"}, {}, Path(name).resolve())
        except AssertionError as error:
            found[name] = str(error)
print(json.dumps(found))
"""
MISTAKES = {
    "rl-x-sound": (),
    "rl-x-forgets": ('return {"steps": self.steps}', "return {}", 'state["steps"]', "0"),
    "rl-x-drifts": ("self.weight, self.momentum = json", "_, self.momentum = json"),
    "rl-x-rounds": ("np.float64(self.weight)", "np.float64(id(self))"),
    "rl-x-fails": ("        self.momentum *= 0.5", "        raise RuntimeError('no gradient')"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    """Package → metrics of the last step, or what is wrong with it; one process and one Ray for all."""
    folder = tmp_path_factory.mktemp("runs")
    for package, changes in MISTAKES.items():
        parts = PARTS
        for old, new in _pairs(changes):
            assert parts.count(old) == 1, old
            parts = parts.replace(old, new)
        plugin = PLUGIN.replace("rl_x_run", package.replace("-", "_"))
        write_plugin(folder / "site", package, files={"plugin.py": plugin, "config.py": CONFIG, "parts.py": parts})
    path = os.pathsep.join([str(folder / "site"), *(one for one in sys.path if one)])
    without = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RL_PLUGINS")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *MISTAKES],
        cwd=folder,
        env=without | {"PYTHONPATH": path, "RL_PLUGINS": ",".join(MISTAKES)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _pairs(changes: tuple[str, ...]) -> list[tuple[str, str]]:
    return list(zip(changes[::2], changes[1::2], strict=True))


def test_a_sound_component_runs_and_continues_exactly(found):
    metrics = found["rl-x-sound"]
    assert (metrics["step"], metrics["policy/steps"], metrics["train/grad_norm"]) == (2, 2.0, 0.25)


def test_an_algorithm_that_forgets_its_state_is_caught(found):
    assert found["rl-x-forgets"] == (
        "backend 'Slope': after a stop and a resume, policy/steps of step 2 is 1.0, and 2.0 without the stop; "
        "what the next step depends on belongs into state() or save()"
    )


def test_a_backend_that_does_not_restore_its_weights_is_caught(found):
    start = "backend 'Slope': after a stop and a resume, train/loss of step 2 is "
    assert found["rl-x-drifts"].startswith(start)


def test_an_export_that_differs_is_caught(found):
    assert found["rl-x-rounds"] == (
        "backend 'Slope': after a stop and a resume the exported weights differ (model.safetensors)"
    )


def test_a_component_that_fails_in_a_run_is_shown_with_its_error(found):
    head = r"backend 'Slope': a tiny run fails: training worker train-0 \(pid \d+ on \S+\) failed in policy train:\n"
    assert re.match(head, found["rl-x-fails"])
    assert "RuntimeError: no gradient" in found["rl-x-fails"]


@pytest.fixture
def parts(install):
    """Components in numpy, with a change to their config or code."""

    def parts(*changes: str) -> None:
        config, code = CONFIG, PARTS
        for old, new in _pairs(changes):
            assert (config + code).count(old) == 1, old
            config, code = config.replace(old, new), code.replace(old, new)
        install("rl-x-run", PLUGIN, files={"config.py": config, "parts.py": code})

    return parts


def test_the_steps_of_the_run_have_no_row_in_common(parts, tmp_path):
    parts("rows_per_step=4", "rows_per_step=12", "return questions()", "return []")
    with pytest.raises(CannotRun):  # there is no source that reads them
        sections_for("backend", {"name": "Slope"}, tmp_path)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 24


def test_a_section_that_is_given_is_not_looked_for(parts, tmp_path):
    parts("rows_per_step=4", "rows_per_step=4")
    given = {"algorithm": {"name": "Count"}, "rewards": [{"name": "none"}], "model": {"path": "here"}, "run": {}}
    assert sections_for("reward", {"name": "mine"}, tmp_path, given) == {
        "model": {"path": "here"},
        "algorithm": {"name": "Count"},
        "rewards": [{"name": "mine"}],
        "backend": {"name": "Slope"},
        "data": {"name": "Questions"},
        "tokenizer": {"name": "Letters"},
    }


def test_rows_that_no_algorithm_takes_are_named(parts, tmp_path):
    parts("return questions()", 'return [{"text": "abc", "__where__": "here:1"}]')
    with pytest.raises(CannotRun) as caught:
        sections_for("data_source", {"name": "Questions"}, tmp_path)
    assert str(caught.value) == (
        "a tiny run needs an algorithm that learns from rows with text, and no installed one does: "
        "name one in the suite's `sections`"
    )


def test_rows_of_prompts_alone_are_sampled_from(parts, tmp_path):
    parts("return questions()", 'return [{"prompt": "abc", "__where__": "here:1"}]')
    with pytest.raises(CannotRun) as caught:
        sections_for("data_source", {"name": "Questions"}, tmp_path)
    assert "an algorithm that learns from rollouts, and none is installed" in str(caught.value)


def test_a_kind_of_which_none_is_installed_is_named(install, tmp_path):
    only = PLUGIN.partition("@hookimpl\ndef register_backends")[0] + (
        "@hookimpl\ndef register_data_sources():\n    return [_one('data_source', 'Questions')]\n"
    )
    install("rl-x-run", only, files={"config.py": CONFIG, "parts.py": PARTS})
    with pytest.raises(CannotRun) as caught:
        sections_for("algorithm", {"name": "Count"}, tmp_path)
    assert str(caught.value) == (
        "a tiny run needs a backend, and none that fits is installed: "
        "pip install rl-backend-fsdp2 (or rl-backend-megatron)"
    )
    with pytest.raises(CannotRun) as caught:
        sections_for("reward", {"name": "Count"}, tmp_path)
    assert str(caught.value) == (
        "a tiny run needs an algorithm that learns from rollouts, and none is installed: pip install rl-algo-grpo"
    )
