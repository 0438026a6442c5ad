"""What the ranks of a backend do in tests: functions ``(rank, world, port, *, under, …)`` for processes to import."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Scale, Topology, WorkerContext
from rl_core.contracts.model import Role
from rl_core.discovery.references import resolve_reference
from rl_core.errors import StorageError
from rl_core.model import reduce_metrics

import rl_torch.shards
from rl_torch.engine.engine import Engine
from rl_torch.engine.testing.examples import NLL, POLICY, SCORES, VALUE, model_spec, optimizer_spec
from rl_torch.weights import from_buckets


@dataclass(frozen=True)
class Under:
    """The backend under test: its name, and references to its class and config class."""

    name: str
    backend: str
    config: str

    def build(self, **fields: Any) -> Engine:
        """One that is not set up."""
        factory, config = (cast(Any, resolve_reference(reference)) for reference in (self.backend, self.config))
        return factory(config(name=self.name, **fields))


@dataclass(frozen=True)
class On:
    """A number of ranks, and fields of the backend's section."""

    world: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def backend(under: Under, rank: int, world: int, port: int, **config: Any) -> Iterator[Engine]:
    """A backend that is set up, and closed at the end."""
    made = under.build(**config)
    made.setup(WorkerContext(rank, world, "127.0.0.1", port, threads=1, seed=5))
    try:
        yield made
    finally:
        made.close()


def own_part(made: Engine, batch: SequenceBatch) -> SequenceBatch:
    """What the controller gives this rank."""
    place = made.joined.topology
    return batch.select(batch.split_balanced(place.dp_size)[place.dp_rank])


def weights_of(made: Engine, role: str = "policy") -> dict[str, np.ndarray]:
    """Streamed weights, by name; bfloat16, which numpy lacks, as float32."""
    return {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for name, tensor in from_buckets(made.weights(role))
    }


def train(
    rank: int, world: int, port: int, *, under: Under, batch: SequenceBatch, steps: int = 1, **options: Any
) -> dict[str, Any]:
    """Train a new policy for ``steps`` on ``batch``; see the keys of ``options`` below.

    ``restore`` and ``save`` are directories, ``export`` too; ``config`` holds backend fields.
    """
    loss, role = options.get("loss", NLL), options.get("role", POLICY)
    with backend(under, rank, world, port, **options.get("config", {})) as made:
        info = made.load(role, options.get("spec") or model_spec(), options.get("optimizer") or optimizer_spec())
        if "restore" in options:
            made.restore(role.name, options["restore"])
        shard = own_part(made, batch)
        before = weights_of(made, role.name)
        results = [made.train(role.name, shard, loss, Scale.of(batch)) for _ in range(steps)]
        for name in ("save", "export"):
            if name in options:
                getattr(made, name)(role.name, options[name])
        return {
            "rank": rank,
            "place": made.joined.topology,
            "info": info,
            "results": results,
            "before": before,
            "weights": weights_of(made, role.name),
            "random": torch.rand(3).numpy(),
            "evaluated": made.evaluate(role.name, shard, loss, Scale.of(batch)),
        }


def forward(rank: int, world: int, port: int, *, under: Under, batch: SequenceBatch, **options: Any) -> dict[str, Any]:
    """Outputs of an untrained model on this rank's shard."""
    role = options.get("role", POLICY)
    with backend(under, rank, world, port, **options.get("config", {})) as made:
        made.load(role, options.get("spec") or model_spec(), optimizer_spec())
        outputs, temperature = options.get("outputs", ("logprobs", "entropy")), options.get("temperature", 1.0)
        found = made.forward(role.name, own_part(made, batch), outputs, temperature)
        return {"place": made.joined.topology, "outputs": found}


def forward_after_training(
    rank: int, world: int, port: int, *, under: Under, batch: SequenceBatch, directory: str, config: Mapping[str, Any]
) -> list[np.ndarray]:
    """Log-probs after a step, after another, and after going back to the first by ``restore``."""
    found = []
    with backend(under, rank, world, port, **config) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        shard = own_part(made, batch)
        for turn in range(2):
            made.train("policy", shard, NLL, Scale.of(batch))
            if turn == 0:
                made.save("policy", directory)
            found.append(made.forward("policy", shard, ("logprobs",), 1.0)["logprobs"])
        made.finish_saving()
        made.restore("policy", directory)
        found.append(made.forward("policy", shard, ("logprobs",), 1.0)["logprobs"])
    return found


def two_roles_twice(
    rank: int, world: int, port: int, *, under: Under, batch: SequenceBatch, config: Mapping[str, Any]
) -> list[Topology]:
    """Set up, load a policy and a frozen copy, compare them, close; and all of it again."""
    places = []
    for turn in range(2):
        made = under.build(**config)
        places.append(made.setup(WorkerContext(rank, world, "127.0.0.1", port + turn, threads=1)))
        made.load(POLICY, model_spec(), optimizer_spec())
        made.load(Role("reference", trainable=False), model_spec(), None)
        made.sleep()
        made.wake()
        ours, theirs = (made.forward(r, batch, ("logprobs",), 1.0)["logprobs"] for r in ("policy", "reference"))
        np.testing.assert_array_equal(ours, theirs)
        made.close()
    return places


def save_and_go_on(
    rank: int,
    world: int,
    port: int,
    *,
    under: Under,
    batch: SequenceBatch,
    directories: list[str],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Save two roles at once in the background, train on meanwhile, restore both; losses of the next steps."""
    jobs = ((POLICY, NLL, directories[0]), (VALUE, SCORES, directories[1]))
    found: dict[str, Any] = {}
    with backend(under, rank, world, port, **{"async_save": True, **config}) as made:
        for role, _, _ in jobs:
            made.load(role, model_spec(), optimizer_spec())
        shard, scale = own_part(made, batch), Scale.of(batch)
        for role, loss, directory in jobs:
            made.train(role.name, shard, loss, scale)
            made.save(role.name, directory)
        found["at once"] = [[made.train(role.name, shard, loss, scale) for role, loss, _ in jobs] for _ in range(3)]
        made.finish_saving()
        assert not made.is_saving()
        for role, _, directory in jobs:
            made.restore(role.name, directory)
        found["restored"] = [[made.train(role.name, shard, loss, scale) for role, loss, _ in jobs] for _ in range(3)]
    return found


def save_without_room(
    rank: int,
    world: int,
    port: int,
    *,
    under: Under,
    batch: SequenceBatch,
    directories: list[str],
    config: Mapping[str, Any],
    full: int = 0,
) -> list[str]:
    """The disk of rank ``full`` is full for one save: what every rank is told, and how training went on."""
    written = rl_torch.shards.save_file
    with backend(under, rank, world, port, **config) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        shard, said = own_part(made, batch), []
        for directory in directories:
            if rank == full and directory == directories[0]:
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


def output_ranks(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers that the controller reads, in data-parallel order."""
    chosen = [answer for answer in answers if answer["place"].is_output]
    return sorted(chosen, key=lambda answer: answer["place"].dp_rank)


def metrics_of(answers: list[dict[str, Any]], step: int = 0) -> dict[str, float]:
    """What the controller reports of a step of :func:`train`."""
    return reduce_metrics([answer["results"][step] for answer in output_ranks(answers)])


def merged(batch: SequenceBatch, answers: list[dict[str, Any]], name: str) -> np.ndarray:
    """One output of :func:`forward` in the batch's order, as the controller merges it."""
    chosen = output_ranks(answers)
    parts = batch.split_balanced(len(chosen))
    return batch.scatter(parts, [a["outputs"][name] for a in chosen], per_token=name != "scores")


def same_weights(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Bit by bit, with the same names."""
    assert set(found) == set(expected)
    for name, weight in expected.items():
        np.testing.assert_array_equal(found[name], weight, err_msg=name)


def make_directory(path: Path) -> str:
    """Create and name a directory."""
    path.mkdir(parents=True, exist_ok=True)
    return str(path)
