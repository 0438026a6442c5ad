"""The loss functions of all algorithms, by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale
from rl_torch.losses import LossBatch, TokenOutputs, call_loss, load_loss
from torch import Tensor

from gpu import batches, oracle
from gpu.registry import Comparison, Machine, case, compare, compare_norm

EPS = torch.finfo(torch.float32).eps
NAMES = ("logprobs", "entropy", "mean_logprobs", "logsumexp")


@case("equality", seconds=20)
def losses(machine: Machine) -> Iterator[Comparison]:
    """Losses of every algorithm and their gradients, given the same log-probs, values or scores."""
    batch, found = known_outputs(machine)
    for name, loss in batches.LOSSES.items():
        expected, expected_grads = _evaluate(found, batch, loss, device="cpu", dtype=torch.float64)
        value, grads = _evaluate(found, batch, loss, device=machine.device, dtype=torch.float32)
        inputs = [getattr(found, output) for output in loss.outputs]
        # Inputs are rounded once, and what is made of each of them a few times more.
        moved = sum(float((g.abs() * x.abs()).sum()) for g, x in zip(expected_grads, inputs, strict=True))
        yield compare(name, value, expected, absolute=8 * EPS * (moved + float(expected.abs())))
        largest = max(1.0, *(float(x.abs().max()) for x in inputs)) * machine.shape.longest**0.5
        yield compare_norm(f"{name}: gradient", grads, expected_grads, relative=8 * EPS * largest)


def known_outputs(machine: Machine) -> tuple[SequenceBatch, TokenOutputs]:
    """A batch with all columns, and everything that models say about it, float64 on the CPU without gradients."""
    shape = machine.shape
    batch = batches.texts(shape.vocabulary, shape.longest)
    with torch.no_grad():
        of_lm = oracle.outputs(oracle.load(oracle.model_folder(machine)), "lm", batch, NAMES)
        scalar = oracle.load(oracle.model_folder(machine, "scalar"), "scalar")
        of_scalar = oracle.outputs(scalar, "scalar", batch, ("values", "scores"))
    assert of_lm.logprobs is not None
    assert of_scalar.values is not None
    batch = batches.with_columns(batch, of_lm.logprobs.numpy(), of_scalar.values.numpy())
    return batch, replace(of_lm, values=of_scalar.values, scores=of_scalar.scores)


def _evaluate(
    found: TokenOutputs, batch: SequenceBatch, loss: LossSpec, *, device: str, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """The loss at ``found``, and its gradients by the outputs that it reads."""
    moved = {name: getattr(found, name).to(device, dtype, copy=True).requires_grad_() for name in loss.outputs}
    outputs = oracle.only(found, moved)
    if dtype == torch.float64:
        value, _ = oracle.loss_of(outputs, batch, loss)
    else:
        columns = LossBatch(batch, device=device)
        value, metrics = call_loss(load_loss(loss.function), loss, outputs, columns, Scale.of(batch))
        wrong = [name for name, metric in metrics.items() if not np.isfinite(float(metric))]
        if wrong:
            raise FloatingPointError(f"metrics that are not finite: {', '.join(wrong)}")
    value.backward()
    return value, [x.grad if x.grad is not None else torch.zeros_like(x) for x in moved.values()]
