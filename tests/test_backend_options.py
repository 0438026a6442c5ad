"""Runs through the whole stack with what a backend can be asked for: adapters, other layouts, background saves."""

import json

import pytest
import yaml
from support import metrics_of

pytestmark = pytest.mark.slow


def test_an_adapter_is_trained_sampled_from_saved_resumed_and_exported(tiny, rl, tmp_path):
    run = tmp_path / "run"
    options = [
        "model.adapter={name: lora, rank: 4}",
        "backend.parallel={tp: 1, dp: 2}",
        "backend.async_save=true",
        "algorithm.kl.coefficient=0.1",
        "run.checkpoint_every=1",
    ]
    rl("run", tiny, *options, "run.steps=2")
    rl("resume", run, "run.steps=4")
    rows = metrics_of(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    # What the generator sampled from is the model with its adapter merged, the reference is the one without.
    assert all(row["mismatch/max_abs_logprob_gap"] < 1e-5 for row in rows)
    assert rows[0]["policy/kl_reference"] == pytest.approx(0.0, abs=1e-6)
    assert rows[-1]["policy/kl_reference"] > 0
    assert (run / "export" / "model.safetensors").is_file()
    adapter = json.loads((run / "export" / "adapter" / "adapter_config.json").read_text())
    assert (adapter["peft_type"], adapter["r"]) == ("LORA", 4)


def test_a_tensor_parallel_policy_gives_its_generator_whole_weights(tiny, rl, tmp_path):
    heads = ["model.init.architecture=qwen3", "model.init.kv_heads=2"]
    rl("run", tiny, *heads, "backend.parallel={tp: 2, sequence: true}", "run.steps=2")
    assert all(row["mismatch/max_abs_logprob_gap"] < 1e-5 for row in metrics_of(tmp_path / "run"))


def test_the_backend_that_auto_chose_is_written_down(tiny_sft, rl, tmp_path):
    checked = rl("check", tiny_sft, "backend.name=auto").stdout
    assert "fsdp2" in checked
    adapter = "model.adapter={name: adalora, rank: 2}"
    rl("run", tiny_sft, "backend.name=auto", adapter, "backend.precision=fp16", "run.steps=2")
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["backend"]["name"] in ("fsdp2", "rl-backend-fsdp2/fsdp2")
    rows = metrics_of(tmp_path / "run")
    assert rows[-1]["train/adapter_rank"] == 2.0
    assert rows[0]["train/loss_scale"] == 65536.0


def test_an_adapter_that_the_backend_cannot_train_is_refused(tiny_sft, rl):
    done = rl("check", tiny_sft, "model.adapter={name: dora}", "backend.parallel={tp: 2}", check=False)
    assert done.returncode == 2
    assert "dora adapters do not work with tensor parallelism (2 ranks)" in done.stdout + done.stderr
