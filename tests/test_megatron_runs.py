"""Runs on Megatron, through the command line: they learn what they learn on fsdp2, and go on after a kill."""

import signal
import time

import pytest
import yaml
from support import metrics_of

pytestmark = pytest.mark.slow

SUMS = '''
"""One-digit sums, least significant digit first; two demonstrations of three drop the carry."""
import random

PAIRS = [(a, b) for a in range(10) for b in range(10)]


def answer(total):
    return f"{total:02d}"[::-1]


def questions():
    return [{"prompt": f"{a}+{b}=", "answer": answer(a + b)} for a, b in PAIRS]


def demonstrations():
    noise = random.Random(1)
    for a, b in PAIRS * 12:
        yield {"prompt": f"{a}+{b}=", "completion": answer((a + b) % 10 if noise.random() < 0.65 else a + b)}


def preferences():
    return [
        {"prompt": f"{a}+{b}=", "chosen": answer(a + b), "rejected": answer((a + b + 10) % 20)} for a, b in PAIRS
    ]
'''
MODEL = {"architecture": "qwen3", "hidden_size": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 192}
STEPS = {"sft": 200, "grpo": 20, "dpo": 10, "rm": 24, "again": 24, "ppo": 2}


def stages(functions):
    """Supervised on fsdp2, then everything else on Megatron; the reward model twice alike."""

    def stage(name, data, algorithm, parallel, **more):
        return {
            "name": name,
            "model": {"path": "${stages.sft.export}", "max_length": 8},
            "data": {"name": "python", "function": f"{functions}:{data}"},
            "algorithm": algorithm,
            "backend": {"name": "megatron", "parallel": parallel},
            "run": {"steps": STEPS[name]},
            **more,
        }

    accuracy = {"evaluators": [{"name": "accuracy", "max_new_tokens": 2}]}
    sft = {"name": "sft", "sequences_per_step": 64, "learning_rate": 3e-3}
    sft["optimizer"] = {"schedule": "cosine", "warmup_steps": 20, "betas": [0.9, 0.99]}
    scratch = {"model": {"init": MODEL | {"extra": {"initializer_range": 0.08}}, "max_length": 8}}
    scratch |= {"tokenizer": {"name": "characters", "vocab_size": 48}, "backend": {"name": "fsdp2"}}
    grpo = {"name": "grpo", "prompts_per_step": 32, "group_size": 8, "learning_rate": 1e-3}
    dpo = {"name": "dpo", "pairs_per_step": 50, "learning_rate": 5e-4, "beta": 0.5}
    rm = {"name": "rm", "pairs_per_step": 50, "learning_rate": 1e-3}
    ppo = {"name": "ppo", "prompts_per_step": 32, "learning_rate": 1e-4, "value": {"learning_rate": 1e-3}}
    checkpoints = {"run": {"steps": STEPS["rm"], "checkpoint_every": 4}}
    return [
        stage("sft", "demonstrations", sft, {}, **scratch),
        stage("grpo", "questions", grpo, {"tp": 2, "sequence": True}, **accuracy),
        stage("dpo", "preferences", dpo, {"pp": 2}, **accuracy),
        stage("rm", "preferences", rm, {}, **checkpoints),
        stage("again", "preferences", rm, {}, **checkpoints),
        stage("ppo", "questions", ppo, {}, rewards=[{"name": "model", "path": "${stages.rm.export}"}]),
    ]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("megatron")


@pytest.fixture
def run(directory, start_rl, rl):
    """One run of all stages, killed while it trains the reward model and resumed; made by the first test."""
    run = directory / "run"
    if run.exists():
        return run
    (directory / "sums.py").write_text(SUMS)
    config = directory / "runs.yaml"
    common = {"name": "megatron", "directory": str(run), "cpus": 1, "seed": 0}
    content = {"run": common, "generator": {"name": "hf", "max_new_tokens": 2}, "rewards": [{"name": "exact_match"}]}
    content["eval_data"] = {"name": "python", "function": f"{directory / 'sums.py'}:questions"}
    config.write_text(yaml.safe_dump(content | {"stages": stages(directory / "sums.py")}))
    process = start_rl("run", config)
    wait_for_steps_after_a_checkpoint(process, run, "rm")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "stages" / "rm" / "finished.json").exists(), "killed too late"
    rl("resume", run, timeout=1500)
    return run


def wait_for_steps_after_a_checkpoint(process, run, stage, timeout=1500):
    deadline = time.time() + timeout
    while not list((run / "stages" / stage / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.stdout.read()
        assert time.time() < deadline, "no checkpoint in time"
        time.sleep(0.02)


def of_stage(run, stage):
    return [row for row in metrics_of(run) if row["stage"] == stage]


@pytest.mark.parametrize("stage", ["grpo", "dpo"])
def test_accuracy_rises_as_it_does_on_fsdp2(run, stage):
    accuracy = [row["eval/accuracy"] for row in of_stage(run, stage) if "eval/accuracy" in row]
    assert 0.45 < accuracy[0] < 0.75, "noisy demonstrations leave a middling accuracy"
    assert accuracy[-1] > 0.9


def test_generators_sample_from_the_weights_that_are_trained(run):
    rows = of_stage(run, "grpo") + of_stage(run, "ppo")
    gaps = [row["mismatch/max_abs_logprob_gap"] for row in rows if "mismatch/max_abs_logprob_gap" in row]
    assert len(gaps) == STEPS["grpo"] + STEPS["ppo"]
    assert max(gaps) < 1e-5


def test_a_killed_run_continues_with_the_metrics_of_one_that_was_not(run):
    killed, whole = (
        [
            {k: v for k, v in row.items() if k.startswith("train/") and "per_second" not in k}
            for row in of_stage(run, name)
            if row["step"]
        ]
        for name in ("rm", "again")
    )
    assert len(whole) == STEPS["rm"]
    assert killed == whole
    assert whole[-1]["train/loss"] < whole[0]["train/loss"]
    exports = [(run / "stages" / name / "export" / "model.safetensors").read_bytes() for name in ("rm", "again")]
    assert exports[0] == exports[1]


def test_a_value_model_is_trained_together_with_the_policy(run):
    rows = [row for row in of_stage(run, "ppo") if row["step"]]
    assert len(rows) == STEPS["ppo"]
    assert all(row["train/value_loss"] > 0 and row["train/value_grad_norm"] > 0 for row in rows)
