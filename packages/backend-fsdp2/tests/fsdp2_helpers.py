"""What ranks do in tests, example losses, and small models and batches."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rl_torch.shards
import torch
from architectures import tiny_model
from rl_backend_fsdp2 import adapters
from rl_backend_fsdp2.backend import Fsdp2Backend
from rl_backend_fsdp2.config import Fsdp2Config
from rl_backend_fsdp2.export import export
from rl_backend_fsdp2.mesh import Mesh, Sizes
from rl_backend_fsdp2.step import LoadedModel
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, Topology, WorkerContext
from rl_core.contracts.model import AdapterSpec, ModelSpec, OptimizerSpec, Role
from rl_core.errors import StorageError
from rl_core.model import reduce_metrics
from rl_torch.models import build_model
from rl_torch.policy import wrap_model
from rl_torch.weights import from_buckets

VOCAB = 96
POLICY = Role("policy", trainable=True)
NLL = LossSpec("fsdp2_helpers:nll")


def nll(
    outputs: Any, batch: Any, scale: Scale, *, poison: float = 0.0, factor: float = 1.0
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Negative log-likelihood with an entropy metric where asked; ``poison`` spoils sequences marked ``bad``."""
    mask = batch["loss_mask"]
    loss = -factor * (outputs.logprobs * mask).sum() / scale.tokens
    if poison:
        loss = loss * torch.where(batch["bad"].any(), poison, 1.0)
    metrics = {"tokens": mask.sum() / scale.tokens, "max_length": batch.lengths.max()}
    if outputs.entropy is not None:
        metrics["entropy"] = (outputs.entropy * mask).sum() / scale.tokens
    return loss, metrics


def squared_scores(outputs: Any, batch: Any, scale: Scale) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Regress the score of a sequence on its ``reward``, and every value on 1."""
    scores = (outputs.scores - batch.reward).square().sum() / scale.sequences
    values = ((outputs.values - 1).square() * batch.loss_mask).sum() / scale.tokens
    return scores + values, {}


def model_spec(
    *, layers: int = 2, tie: bool = True, architecture: str = "qwen2", seed: int = 3, vocab: int = VOCAB
) -> ModelSpec:
    """A model of about 50k parameters."""
    init = {
        "architecture": architecture,
        "hidden_size": 32,
        "layers": layers,
        "heads": 4,
        "kv_heads": 2,
        "ffn": 64,
        "tie_embeddings": tie,
    }
    return ModelSpec(init=init, vocab_size=vocab, max_length=128, seed=seed)


def plain_model(spec: ModelSpec) -> torch.nn.Module:
    """The same model, without anything around it."""
    return build_model(spec, dtype=torch.float32)


def random_batch(count: int = 12, *, low: int = 4, high: int = 30, seed: int = 0) -> SequenceBatch:
    """Ragged sequences whose second half carries the loss; units of two."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(low, high, count)
    return SequenceBatch.from_lists(
        [rng.integers(0, VOCAB, n) for n in lengths],
        token_columns={"loss_mask": [(np.arange(n) >= n // 2).astype(np.float32) for n in lengths]},
        sequence_columns={
            "unit": np.arange(count) // 2,
            "bad": np.arange(count) == 1,
            "reward": rng.normal(size=count).astype(np.float32),
        },
    )


def optimizer_spec(**changes: Any) -> OptimizerSpec:
    """A learning rate large enough to see; weight decay and clipping on."""
    return OptimizerSpec(**{"learning_rate": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.5, **changes})


@contextmanager
def backend(rank: int, world: int, port: int, **config: Any) -> Iterator[Fsdp2Backend]:
    """A backend that is set up, and closed at the end."""
    made = Fsdp2Backend(Fsdp2Config(name="fsdp2", **config))
    made.setup(WorkerContext(rank, world, "127.0.0.1", port, threads=1, seed=5))
    try:
        yield made
    finally:
        made.close()


def shard_of(batch: SequenceBatch, rank: int, world: int) -> SequenceBatch:
    """What the controller gives this rank."""
    return batch.select(batch.split_balanced(world)[rank])


def own_part(made: Fsdp2Backend, batch: SequenceBatch) -> SequenceBatch:
    """What the controller gives this backend's rank, by its place in the mesh."""
    place = made._joined().topology
    return shard_of(batch, place.dp_rank, place.dp_size)


def weights_of(made: Fsdp2Backend, role: str = "policy") -> dict[str, np.ndarray]:
    """Streamed weights, by name."""
    return {name: tensor.numpy() for name, tensor in from_buckets(made.weights(role))}


def train(rank: int, world: int, port: int, *, batch: SequenceBatch, steps: int = 1, **options: Any) -> dict[str, Any]:
    """Train a new policy for ``steps`` on ``batch``; see the keys of ``options`` below.

    ``restore`` and ``save`` are directories, ``export`` too; ``config`` holds backend fields.
    """
    loss = options.get("loss", NLL)
    role = options.get("role", POLICY)
    with backend(rank, world, port, **options.get("config", {})) as made:
        made.load(role, options.get("spec") or model_spec(), options.get("optimizer") or optimizer_spec())
        if "restore" in options:
            made.restore(role.name, options["restore"])
        shard = own_part(made, batch)
        before = weights_of(made, role.name)
        results = [made.train(role.name, shard, loss, Scale.of(batch)) for _ in range(steps)]
        for name in ("save", "export"):
            if name in options:
                getattr(made, name)(role.name, options[name])
        return {
            "place": made._joined().topology,
            "results": results,
            "before": before,
            "weights": weights_of(made, role.name),
            "random": torch.rand(3).numpy(),
            "evaluated": made.evaluate(role.name, shard, loss, Scale.of(batch)),
        }


def forward(rank: int, world: int, port: int, *, batch: SequenceBatch, **options: Any) -> dict[str, np.ndarray]:
    """Outputs of an untrained model on this rank's shard."""
    role = options.get("role", POLICY)
    with backend(rank, world, port, **options.get("config", {})) as made:
        made.load(role, options.get("spec") or model_spec(), optimizer_spec())
        outputs = options.get("outputs", ("logprobs", "entropy"))
        return made.forward(role.name, own_part(made, batch), outputs, options.get("temperature", 1.0))


def forward_after_training(
    rank: int, world: int, port: int, *, batch: SequenceBatch, directory: str
) -> list[np.ndarray]:
    """Log-probs after a step, after another, and after going back to the first by ``restore``."""
    found = []
    with backend(rank, world, port) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        shard = shard_of(batch, rank, world)
        for turn in range(2):
            made.train("policy", shard, NLL, Scale.of(batch))
            if turn == 0:
                made.save("policy", directory)
            found.append(made.forward("policy", shard, ("logprobs",), 1.0)["logprobs"])
        made.restore("policy", directory)
        found.append(made.forward("policy", shard, ("logprobs",), 1.0)["logprobs"])
    return found


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
        found["shared"] = made._roles["policy"].model is made._roles["reference"].model
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
            "place": made._joined().topology,
            "results": results,
            "weights": weights_of(made),
            "returned before it was written": pending,
            "written": not made.is_saving(),
        }


def save_without_room(
    rank: int, world: int, port: int, *, batch: SequenceBatch, directories: list[str], config: dict[str, Any]
) -> list[str]:
    """The last rank's disk is full for one save: what every rank is told, and how training went on."""
    written = rl_torch.shards.save_file
    with backend(rank, world, port, **config) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        shard, said = own_part(made, batch), []
        for directory in directories:
            if rank == world - 1 and directory == directories[0]:
                rl_torch.shards.save_file = partial(_no_room_for_shards, written)
            try:
                made.save("policy", directory)
                made.finish_saving()
                said.append("saved")
            except StorageError as error:
                said.append(str(error))
            rl_torch.shards.save_file = written
            made.train("policy", shard, NLL, Scale.of(batch))
        made.restore("policy", directories[-1])
        return said


def _no_room_for_shards(written: Callable[..., None], tensors: Any, path: Path, **options: Any) -> None:
    if path.parent.name == "shards":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    written(tensors, path, **options)


def losses_of(ranks: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Metrics per step of what :func:`train` gave on all ranks, as the controller merges them."""
    reporting = [r for r in ranks if r["place"].is_output]
    steps = range(len(reporting[0]["results"]))
    return [reduce_metrics([r["results"][step] for r in reporting]) for step in steps]


def two_roles_twice(rank: int, world: int, port: int, *, batch: SequenceBatch) -> list[Topology]:
    """Set up, load a policy and a frozen copy, compare them, close; and all of it again."""
    places = []
    for turn in range(2):
        made = Fsdp2Backend(Fsdp2Config(name="fsdp2"))
        places.append(made.setup(WorkerContext(rank, world, "127.0.0.1", port + turn, threads=1)))
        made.load(POLICY, model_spec(), optimizer_spec())
        made.load(Role("reference", trainable=False), model_spec(), None)
        made.sleep()
        made.wake()
        ours, theirs = (made.forward(r, batch, ("logprobs",), 1.0)["logprobs"] for r in ("policy", "reference"))
        np.testing.assert_array_equal(ours, theirs)
        made.close()
    return places


def make_directory(path: Path) -> str:
    """Create and name a directory."""
    path.mkdir(parents=True, exist_ok=True)
    return str(path)


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
    export(LoadedModel(role=POLICY, model=wrap_model(model, "lm"), adapter=adapter), Path(directory), mesh)
    mesh.close()
