"""What ranks do in this package's tests, besides what all backends on the engine do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from architectures import tiny_model
from rl_backend_fsdp2 import adapters
from rl_backend_fsdp2.mesh import Mesh, Sizes
from rl_backend_fsdp2.model import Fsdp2Model
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Scale, WorkerContext
from rl_core.contracts.model import AdapterSpec, ModelSpec, Role
from rl_torch.engine.export import export
from rl_torch.engine.testing import jobs
from rl_torch.engine.testing.examples import NLL, POLICY, model_spec, optimizer_spec
from rl_torch.engine.testing.jobs import Under, make_directory, metrics_of, own_part, weights_of
from rl_torch.policy import wrap_model

FSDP2 = Under("fsdp2", "rl_backend_fsdp2.backend:Fsdp2Backend", "rl_backend_fsdp2.config:Fsdp2Config")

backend = partial(jobs.backend, FSDP2)
train = partial(jobs.train, under=FSDP2)
forward = partial(jobs.forward, under=FSDP2)
save_without_room = partial(jobs.save_without_room, under=FSDP2)


def losses_of(ranks: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Metrics per step of what :func:`train` gave on all ranks, as the controller merges them."""
    return [metrics_of(ranks, step) for step in range(len(ranks[0]["results"]))]


def reference_beside_policy(
    rank: int, world: int, port: int, *, batch: SequenceBatch, spec: ModelSpec, config: dict[str, Any]
) -> dict[str, Any]:
    """Log-probs of the policy and of its base, before and after training; and whether memory holds one model."""
    with backend(rank, world, port, **config) as made:
        made.load(POLICY, spec, optimizer_spec())
        made.load(Role("reference", trainable=False, base_of="policy"), model_spec(), None)
        shard = own_part(made, batch)
        found: dict[str, Any] = {}
        for when in ("before", "after"):
            for role in ("policy", "reference"):
                found[f"{role} {when}"] = made.forward(role, shard, ("logprobs",), 1.0)["logprobs"]
            made.train("policy", shard, NLL, Scale.of(batch))
        found["shared"] = made.role("policy").model.wrapped is made.role("reference").model.wrapped
        found["reference weights"] = weights_of(made, "reference")
        return found


def train_on_while_saving(
    rank: int, world: int, port: int, *, batch: SequenceBatch, steps: int, more: int, directory: str, **options: Any
) -> dict[str, Any]:
    """Train, save in the background and go on training at once."""
    with backend(rank, world, port, **options["config"]) as made:
        made.load(POLICY, model_spec(), options["optimizer"])
        shard = own_part(made, batch)
        results = [made.train("policy", shard, NLL, Scale.of(batch)) for _ in range(steps)]
        made.save("policy", directory)
        pending = made.is_saving()
        results += [made.train("policy", shard, NLL, Scale.of(batch)) for _ in range(more)]
        made.finish_saving()
        return {
            "place": made.joined.topology,
            "results": results,
            "weights": weights_of(made),
            "returned before it was written": pending,
            "written": not made.is_saving(),
        }


def train_with_adapter(
    rank: int,
    world: int,
    port: int,
    *,
    batch: SequenceBatch,
    spec: ModelSpec,
    steps: int,
    directory: str,
    **options: Any,
) -> dict[str, Any]:
    """Train an adapter together with its reference, save and export it in ``directory``, and restore it in a new role.

    ``config`` holds backend fields, ``role`` another role than the policy, ``loss`` its loss.
    """
    saved = make_directory(Path(directory, "saved"))
    role, loss = options.get("role", POLICY), options.get("loss", NLL)
    optimizer = optimizer_spec(eps=1e-6, weight_decay=0.0)
    found: dict[str, Any] = {}
    with backend(rank, world, port, **options.get("config", {})) as made:
        made.load(role, spec, optimizer)
        shard = own_part(made, batch)
        found["losses"] = [made.train(role.name, shard, loss, Scale.of(batch)).partial["loss"] for _ in range(steps)]
        found["weights"] = weights_of(made, role.name)
        if role.head == "lm":
            made.load(Role("reference", trainable=False, base_of=role.name), spec, None)
            found["reference"] = made.forward("reference", batch, ("logprobs",), 1.0)["logprobs"]
            found["reference weights"] = weights_of(made, "reference")
        made.save(role.name, saved)
        made.export(role.name, f"{directory}/export")
        made.load(role, spec, optimizer)
        made.restore(role.name, saved)
        found["restored"] = weights_of(made, role.name)
    return found


def export_random_adapter(
    rank: int, world: int, port: int, *, adapter: AdapterSpec, architecture: str, directory: str
) -> None:
    """Export an adapter whose numbers are all drawn at random, on a model that is not loaded by the backend."""
    model = tiny_model(architecture, attn_implementation="eager")
    adapters.attach(model, adapter)
    adapters.initialise(model, adapter)
    draws = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=draws) * 0.05
    mesh = Mesh(WorkerContext(rank, world, "127.0.0.1", port, threads=1), Sizes(replicate=1, dp=1, cp=1, tp=1))
    export(Fsdp2Model(wrap_model(model, "lm"), mesh, adapter=adapter), Path(directory), mesh)
    mesh.close()
