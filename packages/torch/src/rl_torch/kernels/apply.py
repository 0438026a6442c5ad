"""Trying kernels on a model, and putting those to use that compute the same as its own layers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from torch import Tensor
from transformers import PreTrainedModel

from rl_torch.architectures import vocabulary
from rl_torch.kernels.contract import Applied, Kernel, KernelChoice, Use
from rl_torch.kernels.installed import chosen
from rl_torch.microbatch import Layout, MicroBatch
from rl_torch.policy import Narrow, hidden_at
from rl_torch.seeding import rng_state, set_rng_state

logger = logging.getLogger(__name__)

STATES = {torch.float32: 1e-4, torch.float64: 1e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""How far hidden states may differ, as a share of 1 and the largest: some tens of roundings (2⁻²⁴, 2⁻⁸, 2⁻¹¹), which
layers magnify. In float64 norms and angles are float32's, in transformers too."""

_FEW_ELEMENTS = 2**24
"""Of the parameters by which gradients are compared, the smallest first: all of a small model, and of a large one no
more than training with an adapter has room for."""

GRADIENTS = {dtype: 10 * tolerance for dtype, tolerance in STATES.items()}
"""How far gradients may differ, as a share of the largest of all."""


@dataclass(frozen=True)
class Choice:
    """A kernel that was tried on a model, and the use it passed for."""

    kernel: Kernel
    use: Use


@dataclass(frozen=True)
class InUse:
    """What kernels ask of whoever calls their model; see :class:`~rl_torch.kernels.contract.Applied`."""

    layout: Layout | None = None
    narrow: Narrow | None = None


def prepare_process(choice: KernelChoice, device: str) -> None:
    """Let the config's kernels set up this process, before it computes anything on ``"cpu"`` or ``"cuda"``.

    Raises:
        ConfigError: a name that is not installed.
    """
    for kernel in chosen(choice):
        kernel.prepare_process(device)


def choose_kernels(choice: KernelChoice, model: PreTrainedModel, use: Use, *, role: str) -> list[Choice]:
    """Those of the config's kernels that fit ``model`` and compute what it computes; the log says which and why.

    Each is tried on a few random tokens, together with those before it, and removed again: hidden states, for training
    gradients too, are compared with the model's own. One whose layers do not agree is tried once more without them.

    Args:
        model: the model, or a small one of its kind, on the CPU or on the device; it is moved there if needed.

    Raises:
        ConfigError: a name that is not installed.
    """
    found: list[Choice] = []
    applied: list[Applied] = []
    trial: _Trial | None = None
    for kernel in chosen(choice):
        reason, tried = kernel.expects(use) or kernel.fits(model, use), use
        if reason is None:
            trial = trial or _Trial(model, use)
            one, reason = trial.attempt(kernel, applied, use)
            if one is None and not use.layers_fixed_by:
                tried = replace(use, layers_fixed_by=f"its layers failed the test ({reason})")
                one, reason = trial.attempt(kernel, applied, tried)
            if one is not None:
                applied.append(one)
                found.append(Choice(kernel, tried))
                note = f"; {tried.layers_fixed_by}" if tried is not use else ""
                logger.info("role %s: kernel %s is used: %s%s", role, kernel.name, ", ".join(one.parts), note)
        if reason is not None:
            level = logging.INFO if choice == "auto" else logging.WARNING
            logger.log(level, "role %s: kernel %s is not used: %s", role, kernel.name, reason)
    for one in reversed(applied):
        one.remove()
    return found


def apply_kernels(choices: Sequence[Choice], model: PreTrainedModel) -> InUse:
    """Have ``model`` computed by kernels that :func:`choose_kernels` found for it, or for a small one of its kind."""
    applied = [choice.kernel.apply(model, choice.use) for choice in choices]
    return _together(applied)


def _together(applied: Sequence[Applied]) -> InUse:
    return InUse(
        layout=next((one.layout for one in applied if one.layout is not None), None),
        narrow=next((one.narrow for one in applied if one.narrow is not None), None),
    )


class _Trial:
    """What a model computes by itself, to compare kernels with."""

    def __init__(self, model: PreTrainedModel, use: Use) -> None:
        self._model = model.to(use.device)  # type: ignore[arg-type]  # transformers wraps `to` without its types
        self._training = use.purpose == "training"
        self._batch = _few_sequences(vocabulary(model.config))
        self._expected = self._compute(InUse())

    def attempt(self, kernel: Kernel, others: Sequence[Applied], use: Use) -> tuple[Applied | None, str | None]:
        """Apply a kernel; None and the reason where it does not compute the same, and is removed again."""
        before = rng_state()
        try:
            applied = kernel.apply(self._model, use)
        except Exception as error:  # noqa: BLE001 - the plugin boundary
            return None, f"it failed: {type(error).__name__}: {error}"
        try:
            reason = self._conflict(applied, others) or self._compare(self._compute(_together([*others, applied])))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - the plugin boundary, and code of any model
            reason = f"it failed on {type(self._model).__name__}: {type(error).__name__}: {error}"
        finally:
            set_rng_state(before)
        if reason is None:
            return applied, None
        applied.remove()
        return None, reason

    @staticmethod
    def _conflict(applied: Applied, others: Sequence[Applied]) -> str | None:
        for name, what in (("layout", "lays micro-batches out"), ("narrow", "chooses positions")):
            if getattr(applied, name) is not None and any(getattr(one, name) is not None for one in others):
                return f"another one {what} already"
        return None

    def _compute(self, in_use: InUse) -> list[Tensor]:
        """Hidden states [N, H] where something is predicted, and gradients by parameters."""
        device = self._model.device
        micro = MicroBatch.build(self._batch, packing=in_use.layout or "padded", device=device)
        with torch.set_grad_enabled(self._training):
            states, _ = hidden_at(
                self._model,
                micro.predictors,
                micro.input_ids,
                micro.position_ids,
                narrow=in_use.narrow,
                **micro.arguments,
            )
            if not self._training:
                return [states]
            weights = torch.linspace(-1, 1, states.numel()).cos().view(states.shape).to(states)
            gradients = torch.autograd.grad((states * weights).sum(), _some_parameters(self._model), allow_unused=True)
        return [states.detach(), *(torch.zeros(1) if one is None else one for one in gradients)]

    def _compare(self, found: list[Tensor]) -> str | None:
        (state, *gradients), (own_state, *own_gradients) = found, self._expected
        gap, limit = _gap(state, own_state), STATES[own_state.dtype] * (1 + _largest([own_state]))
        if not gap <= limit:
            return f"hidden states differ by {gap:.2g}, more than {limit:.2g}"
        if gradients:
            gap = max(_gap(one, own) for one, own in zip(gradients, own_gradients, strict=True))
            limit = GRADIENTS[own_state.dtype] * _largest(own_gradients)
            if not gap <= limit:
                return f"gradients differ by {gap:.2g}, more than {limit:.2g}"
        return None


def _some_parameters(model: PreTrainedModel) -> list[Tensor]:
    found: list[Tensor] = []
    elements = 0
    for parameter in sorted((p for p in model.parameters() if p.requires_grad), key=lambda p: p.numel()):
        elements += parameter.numel()
        if elements > _FEW_ELEMENTS:
            break
        found.append(parameter)
    return found


def _few_sequences(vocabulary_size: int) -> SequenceBatch:
    """Of different lengths, the first two beginning alike, with repeated tokens; the ends of them are scored."""
    draws = np.random.default_rng(0)
    first, second, third = (draws.integers(1, min(7, vocabulary_size), n) for n in (9, 4, 6))
    sequences = [first, np.concatenate([first[:5], second]), third]
    masks = [(np.arange(len(one)) >= len(one) - 3).astype(np.float32) for one in sequences]
    return SequenceBatch.from_lists(sequences, token_columns={"loss_mask": masks})


def _gap(found: Tensor, own: Tensor) -> float:
    return float((found.float() - own.float()).abs().max()) if own.numel() else 0.0


def _largest(tensors: Sequence[Tensor]) -> float:
    return max((float(one.float().abs().max()) for one in tensors if one.numel()), default=0.0)
