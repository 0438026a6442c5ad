"""Megatron's AdamW on the gradient buffers of its DDP, stepping with what :mod:`rl_torch.optim` prescribes."""

from __future__ import annotations

import math
from typing import Literal

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.transformer.transformer_config import TransformerConfig
from rl_core.contracts.model import OptimizerSpec
from torch import Tensor, nn

from rl_backend_megatron.runtime import Runtime


class Trainer:
    """The optimizer of one role.

    Attributes:
        ddp: what the schedule runs; its buffers hold the gradients.
        optimizer: Megatron's, with one torch AdamW inside.
        spec: rates and decay.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TransformerConfig,
        spec: OptimizerSpec,
        runtime: Runtime,
        *,
        distributed: bool,
        precision: Literal["fp32", "bf16"],
    ) -> None:
        self._runtime = runtime
        self.spec = spec
        ddp = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=distributed)
        self.ddp = DistributedDataParallel(config, ddp, model)
        config.finalize_model_grads_func = _finalize
        self.optimizer: MegatronOptimizer = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam",
                lr=spec.learning_rate,
                weight_decay=spec.weight_decay,
                adam_beta1=spec.betas[0],
                adam_beta2=spec.betas[1],
                adam_eps=spec.eps,
                clip_grad=spec.max_grad_norm or 0.0,
                bf16=precision == "bf16",
                params_dtype=config.params_dtype,
                use_distributed_optimizer=distributed,
            ),
            [self.ddp],
        )

    def clear(self) -> None:
        """Forget all gradients; DDP would add to those that a step left in ``p.grad``."""
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def norm(self, loss: float) -> tuple[float, bool]:
        """Prepare the gradients for a step; their norm, and whether that and the loss are finite on all ranks."""
        self.optimizer.prepare_grads()
        norm = float(self.optimizer.get_grad_norm())
        broken = torch.tensor(float(not (math.isfinite(loss) and math.isfinite(norm))), device=self._runtime.device)
        return norm, not self._runtime.sum(broken).item()

    @torch.no_grad()
    def step(self, *, rate: float, shrink: float) -> None:
        """Step with the gradients that :meth:`norm` prepared, multiplied by ``shrink``."""
        if shrink != 1.0:
            parameters = [p for part in self.optimizer.chained_optimizers for p in part.get_parameters()]
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], shrink)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            # Megatron only marks what is not decayed (1-D parameters); its own scheduler would apply this.
            group["weight_decay"] = self.spec.weight_decay * group["wd_mult"]
        self.optimizer.step_with_ready_grads()


def _finalize(model: list[nn.Module], num_tokens: Tensor | None = None, **others: object) -> None:
    """Add gradients up over ranks; ``num_tokens`` is not a divisor, because losses are divided already."""
    finalize_model_grads(model, None, **others)
