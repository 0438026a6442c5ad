"""Forward and backward passes: what a model says about packed sequences, and its gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Scale
from rl_torch import varlen
from rl_torch.logprobs import token_outputs
from rl_torch.losses import LossBatch, TokenOutputs, call_loss, load_loss
from rl_torch.microbatch import MicroBatch, Packing
from rl_torch.models import build_model
from rl_torch.policy import compute_outputs, wrap_model
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gpu import batches, oracle
from gpu.cases.losses import NAMES, known_outputs
from gpu.registry import Comparison, Machine, Skip, case, compare, compare_norm, rounding

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WAYS: dict[str, tuple[Packing, bool]] = {
    "padded": ("padded", False),
    "packed under a dense mask": ("packed", False),
    "packed, varlen": ("packed", True),
}
"""Layouts of a micro-batch: packing, and whether attention goes segment by segment."""

END_TO_END = ("sft smoothed", "dpo sigmoid", "grpo", "ppo value", "rm")


@dataclass(frozen=True)
class Model:
    """A model on the device, in one of :data:`WAYS`."""

    wrapped: Any
    packing: Packing
    varlen: bool
    device: str

    @classmethod
    def build(cls, machine: Machine, head: Any, dtype: torch.dtype, way: str) -> Model:
        packing, segments = WAYS[way]
        model = build_model(oracle.model_folder(machine, head), dtype=dtype, device=machine.device, head=head)
        if segments:
            varlen.use_varlen_attention(model)
        return cls(wrap_model(model, head), packing, segments, machine.device)

    def outputs(self, batch: SequenceBatch, names: tuple[str, ...]) -> TokenOutputs:
        """With gradients."""
        micro = MicroBatch.build(batch, packing=self.packing, device=self.device)
        more: dict[str, Any] = {"segments": varlen.Segments.of(micro)} if self.varlen else {}
        return compute_outputs(self.wrapped, micro, names, **more)


def ways(dtype: torch.dtype) -> list[str]:
    """Those that a run may take."""
    return list(WAYS) if dtype != torch.float32 else [w for w in WAYS if "varlen" not in w]


def _outputs(machine: Machine, dtype: torch.dtype) -> Iterator[Comparison]:
    batch = batches.texts(machine.shape.vocabulary, machine.shape.longest)
    mask = torch.from_numpy(batch.token_columns["loss_mask"])
    heads: dict[Any, tuple[str, ...]] = {"lm": NAMES, "scalar": ("values", "scores")}
    for head, names in heads.items():
        reference = oracle.load(oracle.model_folder(machine, head), head, rounded_to=dtype)
        with torch.no_grad():
            expected = oracle.outputs(reference, head, batch, names)
        for way in ways(dtype):
            with torch.no_grad():
                found = Model.build(machine, head, dtype, way).outputs(batch, names)
            for name in names:
                a, b = getattr(found, name).cpu(), getattr(expected, name)
                wanted = 1.0 if name == "scores" else mask
                # Errors are relative to the numbers that were summed up: to logits of about 1, and to the result.
                size = max(1.0, float(b.abs().max()) if head == "scalar" else _largest_logit(expected))
                yield compare(f"{name}, {way}", a * wanted, b * wanted, absolute=machine.rounding(dtype) * size)


def _largest_logit(expected: TokenOutputs) -> float:
    """Upper bound of |logit - logsumexp| that is reached: log-probs are differences of the two."""
    assert expected.logprobs is not None
    return float(expected.logprobs.abs().max())


def _gradients(machine: Machine, dtype: torch.dtype) -> Iterator[Comparison]:
    batch, _ = known_outputs(machine)
    for name in END_TO_END:
        loss = batches.LOSSES[name]
        head = batches.head_of(loss)
        reference = oracle.load(oracle.model_folder(machine, head), head, rounded_to=dtype)
        oracle.loss_of(oracle.outputs(reference, head, batch, loss.outputs), batch, loss)[0].backward()
        expected = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
        for way in ways(dtype)[-1:]:
            model = Model.build(machine, head, dtype, way)
            columns = LossBatch(batch, device=machine.device)
            outputs = model.outputs(batch, loss.outputs)
            call_loss(load_loss(loss.function), loss, outputs, columns, Scale.of(batch))[0].backward()
            found = {n: p.grad for n, p in model.wrapped.model.named_parameters() if p.grad is not None}
            if found.keys() != expected.keys():
                raise ValueError(f"{name}: gradients of {sorted(found.keys() ^ expected.keys())} on one side only")
            pairs = ([found[n] for n in expected], list(expected.values()))
            yield compare_norm(f"{name}, {way}", *pairs, relative=machine.rounding(dtype, passes=2))


for _name, _dtype in DTYPES.items():

    def _forward(machine: Machine, dtype: torch.dtype = _dtype) -> Iterator[Comparison]:
        """Log-probs, entropies, values and scores of packed and padded sequences against separate ones."""
        yield from _outputs(machine, dtype)

    def _backward(machine: Machine, dtype: torch.dtype = _dtype) -> Iterator[Comparison]:
        """Gradients of all parameters, for a loss of each algorithm."""
        yield from _gradients(machine, dtype)

    case("equality", seconds=30, name=f"outputs_{_name}")(_forward)
    if _name != "fp16":
        case("equality", seconds=45, name=f"gradients_{_name}")(_backward)


@case("equality", seconds=15)
def logprob_chunks(machine: Machine) -> Iterator[Comparison]:
    """Log-probs and gradients in chunks of the vocabulary's logits, at another temperature."""
    width, vocabulary, count = machine.shape.hidden, 8 * machine.shape.vocabulary, 77
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        hidden = torch.randn(count, width, generator=generator).to(dtype)
        weight = (torch.randn(vocabulary, width, generator=generator) / width**0.5).to(dtype)
        targets = torch.randint(vocabulary, (count,), generator=generator)
        h, w = (x.double().requires_grad_() for x in (hidden, weight))
        expected = torch.log_softmax(h @ w.T / 0.7, dim=-1).gather(1, targets[:, None]).squeeze(1)
        expected.square().mean().backward()
        for chunk in (None, 16):
            a, b = (x.to(machine.device, copy=True).requires_grad_() for x in (hidden, weight))
            found = token_outputs(a, b, targets.to(machine.device), temperature=0.7, chunk_tokens=chunk)["logprobs"]
            found.square().mean().backward()
            rounds = rounding(dtype, layers=1, width=width)
            label = f"{str(dtype).removeprefix('torch.')}, chunks of {chunk or 'the default'}"
            yield compare(label, found, expected, absolute=rounds * float(expected.detach().abs().max()))
            grads, exact = ([x.grad for x in pair if x.grad is not None] for pair in ((a, b), (h, w)))
            yield compare_norm(f"{label}: gradients", grads, exact, relative=rounds)


@case("equality", seconds=20)
def attention_kernels(machine: Machine) -> Iterator[Comparison]:
    """Flash attention over segments, and PyTorch's other kernels, against softmax(QKᵀ)V in float64."""
    lengths = [1, 2, 7, machine.shape.longest, 33]
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device=machine.device)
    segments = varlen.Segments(bounds, max(lengths))
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(1, heads, sum(lengths), 64, generator=generator) for heads in (8, 2, 2)]
    for dtype in (torch.bfloat16, torch.float16):
        rounds = torch.finfo(dtype).eps * math.sqrt(8)
        for window in (None, 5):
            expected = _exact_attention([x.to(dtype).double() for x in made], lengths, window)
            q, k, v = (x.to(machine.device, dtype).requires_grad_() for x in made)
            found, _ = varlen.attention(None, q, k, v, None, segments=segments, sliding_window=window)
            found.float().square().sum().backward()
            label = f"segments, {str(dtype).removeprefix('torch.')}{', window' if window else ''}"
            yield compare_norm(label, [found], [expected[0]], relative=rounds)
            grads = [x.grad for x in (q, k, v) if x.grad is not None]
            yield compare_norm(f"{label}: gradients", grads, expected[1:], relative=2 * rounds)
    yield from _kernels(machine, [x[:, :, -lengths[-1] :] for x in made], lengths[-1])


def _kernels(machine: Machine, made: list[Tensor], length: int) -> Iterator[Comparison]:
    """PyTorch's kernels for one sequence, as generators and padded rows use them."""
    kinds = [SDPBackend.MATH]
    if machine.is_cuda:
        kinds += [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    expected = _exact_attention([x.bfloat16().double() for x in made], [length], None)[0]
    for kind in kinds:
        q, k, v = (x.to(machine.device, torch.bfloat16) for x in made)
        k, v = (x.repeat_interleave(4, dim=1) for x in (k, v))
        try:
            with sdpa_kernel(kind):
                found = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        except RuntimeError as error:
            if "No available kernel" not in str(error):
                raise
            yield Comparison(kind.name.lower(), 0.0, 0.0, note="this PyTorch does not have it")
            continue
        yield compare_norm(kind.name.lower(), [found], [expected], relative=2**-7 * math.sqrt(8))


def _exact_attention(made: list[Tensor], lengths: list[int], window: int | None) -> list[Tensor]:
    """float64: the result [1, T, heads, d], and the gradients of the sum of its squares by queries, keys and values."""
    q, k, v = (x.clone().requires_grad_() for x in made)
    shared = q.shape[1] // k.shape[1]
    keys, values = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    place = torch.arange(q.shape[2])
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    back = place[:, None] - place[None, :]
    seen = (back >= 0) & (segment[:, None] == segment[None, :])
    if window is not None:
        seen &= back < window
    scores = (q @ keys.mT) / q.shape[-1] ** 0.5
    result = (scores.masked_fill(~seen, -math.inf).softmax(-1) @ values).transpose(1, 2)
    result.square().sum().backward()
    return [result, *(x.grad for x in (q, k, v) if x.grad is not None)]


def need_cuda(machine: Machine, why: str) -> None:
    """Raise Skip elsewhere."""
    if not machine.is_cuda:
        raise Skip(why)
