"""The kernel is used on the models of the quickstart and of the benchmarks, and computes what they compute without."""

from __future__ import annotations

import importlib.metadata
import logging
from typing import Any

import numpy as np
import pytest
import torch
from rl_backend_fsdp2.backend import Fsdp2Backend
from rl_backend_fsdp2.config import Fsdp2Config
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, WorkerContext
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import AdapterSpec, ModelSpec, OptimizerSpec, Role
from rl_generation_hf.config import HfGeneratorConfig
from rl_generation_hf.generator import HfGenerator

TRAINED, SCORED = Role("policy", trainable=True), Role("reference", trainable=False)
MODELS = {
    "quickstart": {"hidden_size": 128, "layers": 2, "heads": 4, "ffn": 352, "extra": {"initializer_range": 0.08}},
    "3M": {"hidden_size": 256, "layers": 4, "heads": 4, "kv_heads": 2, "ffn": 768},
    "25M": {"hidden_size": 512, "layers": 8, "heads": 8, "kv_heads": 4, "ffn": 1536},
}
VOCABULARY = 128


def spec(name: str, *, adapter: AdapterSpec | None = None) -> ModelSpec:
    init = {"architecture": "qwen2", **MODELS[name]}
    return ModelSpec(init=init, vocab_size=VOCABULARY, max_length=64, adapter=adapter)


def batch() -> SequenceBatch:
    """Two prompts with three answers each, which are scored."""
    draws = np.random.default_rng(0)
    sequences, masks = [], []
    for _ in range(2):
        prompt = draws.integers(3, VOCABULARY, 9)
        for length in draws.integers(2, 12, 3):
            sequences.append(np.concatenate([prompt, draws.integers(3, VOCABULARY, length)]))
            masks.append((np.arange(9 + length) >= 9).astype(np.float32))
    return SequenceBatch.from_lists(sequences, token_columns={"loss_mask": masks})


@pytest.fixture
def trainer() -> Any:
    """Make a backend with one model, trained or not, in the place of the last one."""
    made: list[Fsdp2Backend] = []

    def loaded(model: ModelSpec, role: Role = TRAINED, **options: Any) -> Fsdp2Backend:
        for last in made:
            last.close()
        made.append(Fsdp2Backend(Fsdp2Config(name="fsdp2", **options)))
        made[-1].setup(WorkerContext(0, 1, "127.0.0.1", 0, threads=1, seed=5))
        made[-1].load(role, model, OptimizerSpec(1e-3) if role.trainable else None)
        return made[-1]

    yield loaded
    for one in made:
        one.close()


def generator(name: str, **options: Any) -> HfGenerator:
    made = HfGenerator(HfGeneratorConfig(name="hf", **options))
    made.setup(WorkerContext(0, 1, "", 0, threads=1))
    made.load(spec(name), None)
    return made


def kernel_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "kernel" in record.getMessage()]


@pytest.mark.parametrize("name", MODELS)
def test_the_log_says_that_it_is_used(name: str, trainer: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trainer(spec(name))
    generator(name)
    assert kernel_lines(caplog) == [
        "role policy: kernel cpu is used: ragged rows, Llama layers",
        "generator hf: kernel cpu is used: Llama layers",
    ]


@pytest.mark.parametrize(
    ("role", "options", "adapter", "line"),
    [
        (SCORED, {}, None, "role reference: kernel cpu is used: ragged rows, Llama layers"),
        (TRAINED, {"activation_checkpointing": True}, None, "role policy: kernel cpu is used: ragged rows"),
        (TRAINED, {}, AdapterSpec("lora", rank=2, alpha=4.0), "role policy: kernel cpu is used: ragged rows"),
        (
            TRAINED,
            {"packing": "padded"},
            None,
            "role policy: kernel cpu is not used: it needs rows of its own, not those of backend.packing: padded",
        ),
    ],
)
def test_the_log_says_how_much_of_it_is_used(
    role: Role, options: dict, adapter: Any, line: str, trainer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    trainer(spec("quickstart", adapter=adapter), role, **options)
    assert kernel_lines(caplog) == [line]


def test_without_it_training_computes_the_same(trainer: Any) -> None:
    """In float32: sums of 128 to 352 products in another order, through 4 to 8 layers and three steps."""
    for name in ("quickstart", "3M"):
        found = []
        for kernels in ("auto", "none"):
            made = trainer(spec(name), kernels=kernels)
            loss = LossSpec("rl_torch.memory_probe:nll")
            steps = [made.train("policy", batch(), loss, Scale.of(batch())) for _ in range(3)]
            numbers = [one.partial["loss"] for one in steps] + [one.shared["grad_norm"] for one in steps]
            found.append((numbers, made.forward("policy", batch(), ("logprobs",), 1.0)["logprobs"]))
        np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
        np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-4)


def test_without_it_generation_samples_the_same() -> None:
    requests = SequenceBatch.from_lists([[5, 6, 7], [8, 9]], sequence_columns={"seed": np.arange(2, dtype=np.int64)})
    with_it, without = (
        generator("quickstart", kernels=kernels).generate(requests, SamplingParams(n=2, max_new_tokens=8))
        for kernels in ("auto", "none")
    )
    assert with_it.tokens.tolist() == without.tokens.tolist()
    gap = with_it.token_columns["sampled_logprobs"] - without.token_columns["sampled_logprobs"]
    assert np.abs(gap).max() <= 1e-5


def test_where_it_is_not_installed_models_are_trained_and_generate(
    trainer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    caplog.set_level(logging.INFO)
    made = trainer(spec("quickstart"))
    assert made.train("policy", batch(), LossSpec("rl_torch.memory_probe:nll"), Scale.of(batch())).finite
    requests = SequenceBatch.from_lists([[5, 6, 7]], sequence_columns={"seed": np.zeros(1, np.int64)})
    assert len(generator("quickstart").generate(requests, SamplingParams(max_new_tokens=4)).tokens) > 3
    assert kernel_lines(caplog) == []


def test_the_process_keeps_freed_memory_on_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from rl_kernels_cpu import host_memory
    from rl_kernels_cpu.kernel import KERNEL

    called: list[bool] = []
    monkeypatch.setattr(host_memory, "keep_freed_memory", lambda: called.append(True))
    KERNEL.prepare_process("cuda")
    assert called == []
    KERNEL.prepare_process("cpu")
    assert called == [True]
    assert torch.get_num_threads() > 0
