"""What ranks do in this package's tests, besides what all backends on the engine do."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Scale
from rl_core.contracts.model import ModelSpec, Role
from rl_torch.engine.testing import jobs
from rl_torch.engine.testing.examples import NLL, POLICY, SCORES, optimizer_spec, random_batch
from rl_torch.engine.testing.jobs import Under, own_part, weights_of

MEGATRON = Under("megatron", "rl_backend_megatron.backend:MegatronBackend", "rl_backend_megatron.config:MegatronConfig")

backend = partial(jobs.backend, MEGATRON)
train = partial(jobs.train, under=MEGATRON)
forward = partial(jobs.forward, under=MEGATRON)


def gradients(rank: int, world: int, port: int, *, batch: SequenceBatch, **options: Any) -> dict[str, np.ndarray]:
    """Gradients under Hugging Face names: they are put in the place of the parameters, which are then streamed."""
    with backend(rank, world, port, distributed_optimizer=False, **options["config"]) as made:
        made.load(POLICY, options["spec"], optimizer_spec(learning_rate=0.0, max_grad_norm=None))
        loaded = made.role("policy").model
        loaded.trainer.clear = lambda: None  # which ends a step, and begins one
        made.train("policy", own_part(made, batch), NLL, Scale.of(batch))
        for parameter in loaded.stage.parameters():
            parameter.data.copy_(parameter.main_grad)
        return weights_of(made, "policy")


def policy_and_base(
    rank: int, world: int, port: int, *, batch: SequenceBatch, spec: ModelSpec, config: dict[str, Any]
) -> dict[str, Any]:
    """Log-probs and streamed weights of a policy with an adapter and of its base, after three steps."""
    with backend(rank, world, port, **config) as made:
        made.load(POLICY, spec, optimizer_spec())
        made.load(Role("reference", trainable=False, base_of="policy"), spec, None)
        shard = own_part(made, batch)
        for _ in range(3):
            made.train("policy", shard, NLL, Scale.of(batch))
        outputs = {
            role: made.forward(role, shard, ("logprobs",), 1.0)["logprobs"]
            for role in ("policy", "reference", "policy")
        }
        return {
            "place": made.joined.topology,
            "outputs": outputs,
            "policy": weights_of(made, "policy"),
            "reference": weights_of(made, "reference"),
        }


def parameters_by_kind(
    rank: int, world: int, port: int, *, spec: ModelSpec, role: Role, config: dict[str, Any]
) -> dict[str, int]:
    """Numbers on this rank: parameters, those trained; bytes of gradient buffers and, after a step, of moments."""
    batch = random_batch(4)
    with backend(rank, world, port, **config) as made:
        made.load(role, spec, optimizer_spec())
        shard = own_part(made, batch)
        made.train(role.name, shard, NLL if role.head == "lm" else SCORES, Scale.of(batch))
        loaded = made.role(role.name).model
        inner = [part.optimizer for part in loaded.trainer.optimizer.chained_optimizers]
        moments = [state[name] for one in inner for state in one.state.values() for name in ("exp_avg", "exp_avg_sq")]
        return {
            "stage": made.joined.world.pp_rank,
            "parameters": sum(p.numel() for p in loaded.stage.parameters()),
            "trained": sum(p.numel() for p in loaded.stage.parameters() if p.requires_grad),
            "gradients": sum(buffer.grad_data.nbytes for buffer in loaded.trainer.ddp.buffers),
            "moments": sum(tensor.nbytes for tensor in moments),
        }
