"""The training benchmark runs where there is no GPU, and its arithmetic is right."""

import dataclasses
import importlib
import json
import multiprocessing

import pytest
from support import ROOT

TINY_PARAMETERS = 512 * 64 + 64 + 2 * (64 * (64 + 32 + 32) + 64 + 32 + 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64)
"""Embedding, last norm, and two layers: queries, keys and values with biases, output, feed-forward, norms."""


@pytest.fixture
def flops(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu.flops")


@pytest.fixture
def gpu_train(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu.train")


@pytest.mark.slow
def test_two_cpu_ranks_measure_both_kinds_of_step(gpu_train, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ["--device", "cpu", "--size", "tiny", "--gpus", "2", "--steps", "2", "--warmup", "1"]
    assert gpu_train.main([*options, "--peak-tflops", "0.5", "activation_checkpointing=selective"]) == 0
    report = json.loads((tmp_path / "gpu-train.json").read_text())
    assert report["command"].endswith("--peak-tflops 0.5 activation_checkpointing=selective")
    sft, grpo = report["results"]
    assert (sft["step"], grpo["step"]) == ("sft", "grpo")
    for line in (sft, grpo):
        assert line["parameters"] == TINY_PARAMETERS
        assert line["tokens"] == 2 * 8 * 128
        assert len(line["seconds"]) == 2
        assert line["mfu"] == pytest.approx(line["flops"] / line["median_seconds"] / (2 * 0.5e12))
        assert line["tokens_per_second"] == pytest.approx(2048 / line["median_seconds"])
        assert line["backend"]["precision"] == "bf16"
        assert 2**26 < line["peak_bytes_per_rank"] < 2**32
    body, head = TINY_PARAMETERS - 512 * 64, 512 * 64
    attention = 12 * 2 * 64 * 128
    # Every token but a sequence's first gets a log-prob; behind prompts of 16 tokens, 112 of 128 do.
    assert sft["flops"] == 2048 * (6 * body + attention) + 16 * 127 * 6 * head
    assert grpo["flops"] == pytest.approx(4 / 3 * (2048 * (6 * body + attention) + 16 * 112 * 6 * head))
    printed = capsys.readouterr().out
    assert "2 × CPU" in printed
    assert f"{sft['tokens_per_second']:,.0f}" in printed


def test_flops_follow_the_formula_of_the_palm_paper(flops):
    count = flops.TransformerFlops(parameters=1000, head_parameters=400, layers=2, attention_width=8)
    assert count.train([10, 10], 20) == 20 * 6 * 1000 + 12 * 2 * 8 * (100 + 100)
    assert count.train([10, 10], 5) == 20 * 6 * 600 + 5 * 6 * 400 + 12 * 2 * 8 * 200
    assert count.forward([10, 10], 20) == count.train([10, 10], 20) / 3
    assert count.attention([20]) == 2 * count.attention([10, 10]), "one long sequence costs more than two short ones"


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
    ],
)
def test_a_known_gpu_has_its_peak(flops, name, teraflops):
    assert flops.peak_flops(name) == teraflops * 1e12


@pytest.mark.parametrize("name", ["CPU", "NVIDIA A10G", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "Tesla V100-SXM2-16GB"])
def test_the_peak_of_another_device_is_not_guessed(flops, name):
    assert flops.peak_flops(name) is None


def measurement(gpu_train, device, seconds):
    return gpu_train.Measurement(
        step="sft",
        parameters=10**9,
        seconds=seconds,
        tokens=8192,
        flops=989e12,
        attention_flops=1e12,
        peak_bytes=2**30,
        device_name=device,
    )


def job(gpu_train, precision="bf16"):
    backend = {"precision": precision, "max_tokens_per_microbatch": 512}
    return gpu_train.Job(size=gpu_train.SIZES["tiny"], device="cuda", backend=backend, warmup=0, steps=3)


def test_utilisation_is_that_of_the_slowest_rank_in_the_median_step(gpu_train):
    ranks = [measurement(gpu_train, "NVIDIA H200", times) for times in ((1.0, 2.0, 9.0), (1.5, 1.0, 4.0))]
    line = gpu_train.result("tiny", job(gpu_train), ranks, world=2, peak_tflops=None)
    assert line["seconds"] == [1.5, 2.0, 9.0]
    assert line["median_seconds"] == 2.0
    assert line["mfu"] == pytest.approx(989e12 / 2.0 / (2 * 989e12)) == 0.25
    assert (line["tokens_per_second"], line["tokens_per_second_per_rank"]) == (4096, 2048)


@pytest.mark.parametrize(("device", "precision"), [("NVIDIA A10G", "bf16"), ("NVIDIA H200", "fp32")])
def test_utilisation_is_left_out_where_the_peak_is_unknown(gpu_train, device, precision):
    ranks = [measurement(gpu_train, device, (1.0,))]
    made = job(gpu_train, precision)
    assert gpu_train.result("tiny", made, ranks, world=1, peak_tflops=None)["mfu"] is None
    assert gpu_train.result("tiny", made, ranks, world=1, peak_tflops=9890.0)["mfu"] == pytest.approx(0.1)


def test_the_models_have_the_sizes_of_their_names(gpu_train):
    from rl_huggingface.model_shape import shape_of_config

    for name, millions in (("0.5b", 494), ("1.5b", 1543)):
        size = gpu_train.SIZES[name]
        config = {
            "model_type": "qwen2",
            "hidden_size": size.init["hidden_size"],
            "num_hidden_layers": size.init["layers"],
            "num_attention_heads": size.init["heads"],
            "num_key_value_heads": size.init["kv_heads"],
            "intermediate_size": size.init["ffn"],
            "vocab_size": size.vocab_size,
            "tie_word_embeddings": True,
        }
        assert shape_of_config(config).parameters().total // 10**6 == millions
        assert (size.sequence_length, size.max_tokens_per_microbatch) == (4096, 16384)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["compile"], 2, "error: 'compile' is not of the form field=value; for example compile=true\n"),
        (["precision.x=1"], 2, "error: 'precision.x=1': 'precision' has no fields\n"),
        (["--steps", "0"], 2, "error: --steps must be 1 or more\n"),
        (["parallel.tp=2"], 2, "error: parallel makes 2 ranks; add --gpus 2, or leave parallel.dp out\n"),
        (
            ["--sequences", "6"],
            2,
            "error: --sequences 6 is not a multiple of 4, the size of a group of completions\n",
        ),
        (["--gpus", "99"], 3, "error: 99 GPUs wanted, PyTorch sees {seen}\n    add --gpus, or --device cpu\n"),
    ],
)
def test_mistakes_are_reported_before_anything_starts(gpu_train, capsys, arguments, code, message):
    assert gpu_train.main(["--size", "tiny", *arguments]) == code
    assert capsys.readouterr().err == message.replace("{seen}", str(gpu_train.torch.cuda.device_count()))


def test_a_rank_that_fails_says_why(gpu_train):
    made = job(gpu_train)
    size = dataclasses.replace(made.size, init={**made.size.init, "architecture": "qwen99"})
    ours, theirs = multiprocessing.Pipe(duplex=False)
    gpu_train.serve(0, 1, gpu_train._free_port(), dataclasses.replace(made, size=size, device="cpu"), theirs)
    with pytest.raises(gpu_train.RankFailed, match=r"^rank 0: EnvironmentProblem: .* knows no model type 'qwen99'"):
        gpu_train._answer(ours, 0)


def test_a_rank_that_dies_is_noticed(gpu_train):
    ours, theirs = multiprocessing.Pipe(duplex=False)
    theirs.close()
    with pytest.raises(gpu_train.RankFailed, match=r"^rank 3 died without a word \(killed for memory\?\)$"):
        gpu_train._answer(ours, 3)
