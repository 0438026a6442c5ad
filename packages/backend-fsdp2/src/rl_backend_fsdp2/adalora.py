"""AdaLoRA's budget (Zhang et al. 2023): ranks that matter little are pruned while training continues."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.adalora.layer import RankAllocator
from rl_core.contracts.model import AdapterSpec
from torch import Tensor, nn
from transformers import PreTrainedModel

from rl_backend_fsdp2.adapters import NAME, is_adapter, saved_config

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class RankSchedule:
    """Decides after each optimizer step which singular values are 0.

    Args:
        model: with the adapter attached.
    """

    def __init__(self, model: PreTrainedModel, adapter: AdapterSpec) -> None:
        self._model = model
        self._adapter = adapter
        self._allocator = _Allocator(model, saved_config(adapter, model), NAME)
        self._pattern: dict[str, list[bool]] | None = None

    def after_step(self, step: int) -> None:
        """Update importances from the gradients that are still there, and prune.

        Args:
            step: optimizer steps taken, this one included.
        """
        end = self._adapter.prune_to_step
        if step < end:
            self._allocator.update_and_allocate(self._model, step)
        elif step == end or self._pattern is None:
            if not self._allocator.ipt:  # a training so short that pruning ends with the first step
                self._allocator.update_ipt(self._model)
            _, self._pattern = self._allocator.update_and_allocate(self._model, step, force_mask=True)
        else:
            self._allocator.mask_using_rank_pattern(self._model, self._pattern)

    def penalty(self) -> Tensor:
        """λ · mean over the P and Q of ‖PᵀP - I‖ (Frobenius), a scalar with gradients."""
        terms = []
        for name, p in self._model.named_parameters():
            if is_adapter(name) and (".lora_A." in name or ".lora_B." in name):
                product = p @ p.T if ".lora_A." in name else p.T @ p
                terms.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=p.device)))
        return self._adapter.orthogonality * torch.stack(terms).mean()

    def kept(self) -> float:
        """Singular values that are not 0 now, per adapted matrix."""
        counts = [int((p != 0).sum()) for n, p in self._model.named_parameters() if f".lora_E.{NAME}" in n]
        return sum(counts) / len(counts)

    def state(self) -> dict[str, Tensor]:
        """Tensors that a resume needs."""
        found: dict[str, Tensor] = {}
        for kind in _AVERAGES:
            found |= {f"{kind}/{name}": t.contiguous() for name, t in getattr(self._allocator, kind).items()}
        pattern = self._pattern or {}
        return found | {f"kept/{n}": torch.tensor(flags, dtype=torch.uint8) for n, flags in pattern.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Undo :meth:`state`."""
        groups: dict[str, dict[str, Any]] = {kind: {} for kind in (*_AVERAGES, "kept")}
        for key, tensor in state.items():
            kind, _, name = key.partition("/")
            groups[kind][name] = tensor
        for kind in _AVERAGES:
            setattr(self._allocator, kind, groups[kind])
        self._pattern = {n: t.bool().tolist() for n, t in groups["kept"].items()} or None


class _Allocator(RankAllocator):
    """peft's, which fails where the budget is still the whole."""

    def mask_to_budget(self, model: nn.Module, budget: int) -> dict[str, list[bool]] | None:
        return super().mask_to_budget(model, budget) if budget < self.init_bgt else None
