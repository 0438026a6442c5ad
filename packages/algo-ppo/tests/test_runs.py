"""Whole runs: two trained models are checkpointed, resumed and exported, and the policy learns."""

from __future__ import annotations

import json
import signal
import time

import pytest
from support import metrics_of

pytestmark = pytest.mark.slow

KL = "{coefficient: 0.05, controller: adaptive, target: 0.1, horizon: 100}"
PPO = (
    f"algorithm={{name: ppo, prompts_per_step: 16, minibatches: 2, learning_rate: 1.0e-3, kl: {KL}, "
    "bootstrap_truncated: true, value: {learning_rate: 1.0e-3}}"
)


def without_times(rows):
    return [{k: v for k, v in r.items() if not k.startswith("time/") and "per_second" not in k} for r in rows]


def kill_after_checkpoint(process, run, step, timeout=180):
    deadline = time.time() + timeout
    while not (run / "checkpoints" / f"step-{step:06d}").is_dir():
        assert process.poll() is None, process.stdout.read()
        assert time.time() < deadline, "no checkpoint in time"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_run_continues_both_models_and_the_kl_coefficient_bit_for_bit(tiny, rl, start_rl, tmp_path):
    common = [PPO, "run.steps=12", "run.checkpoint_every=6"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    rl("run", tiny, *common, f"run.directory={whole}")
    kill_after_checkpoint(start_rl("run", tiny, *common, f"run.directory={broken}"), broken, 6)
    rl("resume", broken)
    rows = metrics_of(whole)
    assert without_times(metrics_of(broken)) == without_times(rows)
    assert len({r["policy/kl_coefficient"] for r in rows}) == 12
    for role in ("policy", "value"):
        assert (broken / "checkpoints" / "step-000012" / role / "role.json").is_file()
    assert not (broken / "checkpoints" / "step-000012" / "reference").exists()
    assert (broken / "export" / "model.safetensors").read_bytes() == (
        whole / "export" / "model.safetensors"
    ).read_bytes()


def test_a_value_model_may_start_from_the_folder_of_a_language_model(tiny, rl, tmp_path):
    rl("run", tiny, PPO, "run.steps=1")
    export = tmp_path / "run" / "export"
    config = json.loads((export / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    algorithm = f"{PPO.removesuffix('}}')}, path: {export}}}}}"
    rl("run", tiny, algorithm, "run.steps=2", f"run.directory={tmp_path}/second")
    first = metrics_of(tmp_path / "second")[0]
    assert first["value/explained_variance"] == pytest.approx(0.0, abs=1e-6)  # a new head predicts 0
    assert first["train/value_grad_norm"] > 0


def test_ppo_lifts_the_reward(tiny, rl, tmp_path):
    algorithm = (
        "algorithm={name: ppo, prompts_per_step: 32, minibatches: 2, learning_rate: 3.0e-3, "
        "value: {learning_rate: 3.0e-3}}"
    )
    rl("run", tiny, algorithm, "run.steps=60")
    rows = metrics_of(tmp_path / "run")
    reward = [r["rollout/reward_mean"] for r in rows]
    assert sum(reward[:5]) / 5 < 0.6
    assert sum(reward[-5:]) / 5 > 0.9  # four ones are worth 1
    assert rows[-1]["train/value_loss"] < 0.01 < rows[0]["train/value_loss"]
    assert max(r["mismatch/max_abs_logprob_gap"] for r in rows) < 1e-4
