"""Liger's kernels in Triton's interpreter, against the layers of transformers and PyTorch's cross-entropy."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from rl_backend_fsdp2.backend import Fsdp2Backend
from rl_backend_fsdp2.config import Fsdp2Config
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, WorkerContext
from rl_core.contracts.model import AdapterSpec, ModelSpec, OptimizerSpec, Role
from rl_kernels_liger.kernel import KERNEL
from rl_kernels_liger.layers import FAMILIES
from rl_kernels_liger.logprobs import target_logprobs
from rl_torch.kernels import installed
from rl_torch.kernels.contract import Kernel, Use
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from triton.runtime import interpreter

torch.set_num_threads(1)

TRAINING = Use("training", "cpu")
SELECTIVE = "backend.activation_checkpointing: selective"
LAYERS = ("RMSNorm", "RoPE", "SwiGLU")
LOGPROBS = "fused linear cross-entropy"
IDS = torch.tensor([[1, 5, 2, 7, 3, 3, 4, 9, 8]])
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
WITH_EXPERTS = ("mixtral", "qwen3_moe")
IN_SUITE = ("llama", "qwen2", "qwen3", "gemma2", "phi3")
LATER = [pytest.param(name, marks=pytest.mark.nightly) for name in sorted(FAMILIES - set(IN_SUITE))]


@triton.jit
def rsqrt(x):
    return 1.0 / tl.sqrt(x)


@triton.jit
def tanh(x):
    return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0


@pytest.fixture(scope="module", autouse=True)
def interpreted() -> Any:
    """What the interpreter lacks: Python's floats are float32 in kernels that are compiled, and CUDA has functions."""
    convert = interpreter._implicit_cvt

    def with_floats(value: Any) -> Any:
        if not isinstance(value, float):
            return convert(value)
        return tl.tensor(interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_implicit_cvt", with_floats)
        patch.setattr(importlib.import_module("liger_kernel.ops.rms_norm"), "rsqrt", rsqrt)
        patch.setattr(importlib.import_module("liger_kernel.ops.geglu"), "tanh", tanh)
        yield


def model(family: str = "qwen3", auto: Any = AutoModelForCausalLM) -> PreTrainedModel:
    torch.manual_seed(0)
    return auto.from_config(AutoConfig.for_model(family, **SIZES, **(EXPERTS if family in WITH_EXPERTS else {})))


def computed(made: PreTrainedModel) -> list[Tensor]:
    """Last hidden states, and the gradients of all parameters of the body by a sum of them."""
    made.zero_grad()
    states = made.base_model(input_ids=IDS, use_cache=False).last_hidden_state
    (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
    return [states.detach(), *(p.grad for p in made.base_model.parameters() if p.grad is not None)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    """Up to some tens of float32's roundings."""
    for ours, own in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5 * (1 + float(own.abs().max())))


@pytest.mark.parametrize("family", [*IN_SUITE, *LATER])
def test_a_models_layers_compute_what_those_of_transformers_do(family: str) -> None:
    made = model(family)
    expected = computed(made)
    assert KERNEL.fits(made, TRAINING) is None
    applied = KERNEL.apply(made, TRAINING)
    assert applied.parts[:2] == LAYERS[:2]
    assert len(applied.parts) == (3 if family in WITH_EXPERTS else 4)
    assert_same(computed(made), expected)
    applied.remove()
    for ours, own in zip(computed(made), expected, strict=True):
        assert torch.equal(ours, own), "removed, the layers are those of transformers"


def test_no_other_model_of_the_process_is_changed() -> None:
    """Neither one that is there, nor one that is built afterwards, nor the family's module."""
    before, later_on = model(), sys.modules["transformers.models.qwen3.modeling_qwen3"]
    names, expected = dict(vars(later_on)), computed(before)
    applied = KERNEL.apply(model(), TRAINING)
    assert vars(later_on) == names
    for other in (before, model()):
        for ours, own in zip(computed(other), expected, strict=True):
            assert torch.equal(ours, own)
        assert not any("forward" in vars(module) for module in other.modules())
    applied.remove()


def test_every_attention_layer_turns_by_liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise nothing would show that the rotary embedding is not the one of transformers."""
    made, calls = model(), []
    own = sys.modules["transformers.models.qwen3.modeling_qwen3"].apply_rotary_pos_emb
    KERNEL.apply(made, TRAINING)
    for layer in made.model.layers:
        turn = layer.self_attn.forward.__func__.__globals__["apply_rotary_pos_emb"]
        assert turn.__module__.startswith("liger_kernel")
        assert turn is not own
        calls.append(turn)
    assert len(calls) == 2


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("biased", [False, True])
def test_log_probs_and_their_gradients_are_those_of_cross_entropy(temperature: float, biased: bool) -> None:
    """Each token's gradient has its own weight, as losses over log-probs give it."""
    draws = torch.Generator().manual_seed(1)
    hidden, weight, bias = (torch.randn(shape, generator=draws) for shape in ((11, 16), (40, 16), (40,)))
    targets, by_token = torch.randint(0, 40, (11,), generator=draws), torch.randn(11, generator=draws)
    found = []
    for ours in (True, False):
        h, w, b = (x.clone().requires_grad_() for x in (hidden, weight, bias))
        if ours:
            logprobs = target_logprobs(h, w, targets, b if biased else None, temperature)
        else:
            logits = F.linear(h, w, b if biased else None) / temperature
            logprobs = -F.cross_entropy(logits, targets, reduction="none")
        (logprobs * by_token).sum().backward()
        found.append([logprobs.detach(), *(x.grad for x in (h, w, b) if x.grad is not None)])
    assert_same(*found)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (("model.adapter",), LAYERS),
        (("backend.activation_checkpointing: full",), LAYERS),
        ((SELECTIVE,), ("RMSNorm", "SwiGLU")),
        (("backend.parallel.tp",), ()),
        (("backend.compile", "model.adapter"), ()),
    ],
)
def test_settings_decide_which_layers_are_replaced(settings: tuple[str, ...], parts: tuple[str, ...]) -> None:
    applied = KERNEL.apply(model(), Use("training", "cpu", layers_fixed_by=settings))
    assert applied.parts == (*parts, LOGPROBS)


def test_it_says_where_it_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert KERNEL.fits(model("gpt2"), TRAINING) == "it has no layers of GPT2LMHeadModel"
    assert KERNEL.expects(Use("decoding", "cuda")) == "it is for training"
    monkeypatch.delenv("TRITON_INTERPRET")
    assert KERNEL.expects(TRAINING) == "it needs a CUDA GPU"
    assert KERNEL.expects(Use("scoring", "cuda")) is None
    monkeypatch.setenv("PATH", "")
    assert KERNEL.here() == "needs a CUDA GPU"


SPEC = {"architecture": "qwen2", "hidden_size": 32, "layers": 2, "heads": 4}
CASES: dict[str, tuple[dict[str, Any], AdapterSpec | None, str]] = {
    "plain": ({}, None, ", ".join((*LAYERS, LOGPROBS))),
    "full": ({"activation_checkpointing": True}, None, ", ".join((*LAYERS, LOGPROBS))),
    "selective": ({"activation_checkpointing": "selective"}, None, f"RMSNorm, SwiGLU, {LOGPROBS}"),
    "fp16": ({"precision": "fp16"}, None, ", ".join((*LAYERS, LOGPROBS))),
    "adapter": ({}, AdapterSpec("lora", rank=2, alpha=4.0), ", ".join((*LAYERS, LOGPROBS))),
}


def batch() -> SequenceBatch:
    draws = np.random.default_rng(0)
    sequences = [draws.integers(1, 64, n) for n in (9, 5)]
    masks = [(np.arange(len(one)) >= 2).astype(np.float32) for one in sequences]
    return SequenceBatch.from_lists(sequences, token_columns={"loss_mask": masks})


@pytest.fixture
def only_liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the kernels that may be installed: the same numbers are computed with it and without."""
    kernel: Kernel = KERNEL
    found = {"liger": installed.Installed("liger", "rl-kernels-liger", kernel)}
    monkeypatch.setattr("rl_torch.kernels.installed.installed", lambda: found)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("only_liger")
def test_a_backend_trains_with_it_as_without(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Losses and gradient norms of two steps that are proportional to the gradient.

    In fp16 sharded by FSDP, up to eps · √n for about ten roundings in each of two layers, forward and back.
    """
    options, adapter, parts = CASES[name]
    optimizer = OptimizerSpec(10.0, eps=1e3, betas=(0.0, 0.0))
    caplog.set_level(logging.INFO)
    spec = ModelSpec(init=SPEC, vocab_size=64, max_length=32, adapter=adapter)
    found = []
    for kernels in ("auto", "none"):
        made = Fsdp2Backend(Fsdp2Config(name="fsdp2", kernels=kernels, **options))
        made.setup(WorkerContext(0, 1, "127.0.0.1", 0, threads=1, seed=5))
        made.load(Role("policy", trainable=True), spec, optimizer)
        loss = LossSpec("rl_torch.memory_probe:nll")
        steps = [made.train("policy", batch(), loss, Scale.of(batch())) for _ in range(2)]
        found.append([x for one in steps for x in (one.partial["loss"], one.shared["grad_norm"])])
        made.close()
    np.testing.assert_allclose(*found, rtol=3e-3 if name == "fp16" else 1e-5)
    assert [r.getMessage() for r in caplog.records if "role policy: kernel" in r.getMessage()] == [
        f"role policy: kernel liger is used: {parts}"
    ]


def test_a_reward_model_has_the_layers_too() -> None:
    made = model("llama", AutoModelForSequenceClassification)
    expected = computed(made)
    KERNEL.apply(made, TRAINING)
    assert_same(computed(made), expected)
