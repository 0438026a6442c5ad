"""The replicas: started when first needed, asked together, replaced once when they die."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.errors import EnvironmentProblem, RLError, WorkerDied

from rl_reward_model.config import ModelRewardConfig
from rl_reward_model.replica import Replica

logger = logging.getLogger(__name__)


class ReplicaPool:
    """``config.replicas`` Ray actors. On CPU they reserve no core, so they never wait for a place.

    Args:
        worker: the class that runs in the actors.
    """

    def __init__(self, config: ModelRewardConfig, *, worker: type = Replica) -> None:
        self.config = config
        self._worker = worker
        self.actors: dict[int, Any] = {}
        self._loading: dict[int, Any] = {}

    def start(self, replicas: Iterable[int]) -> None:
        """Start those replicas that do not run yet, without waiting for them.

        Raises:
            RLError: Ray is not started.
        """
        import ray

        if not ray.is_initialized():
            raise RLError(
                f"reward {self.config.name!r} runs in Ray workers, but Ray is not started\n"
                "    call ray.init() first (`rl run` and `rl eval` do)"
            )
        for replica in replicas:
            if replica not in self.actors:
                actor: Any = ray.remote(self._worker).options(
                    num_cpus=0, num_gpus=self.config.gpus, max_restarts=0, scheduling_strategy="SPREAD"
                )
                self.actors[replica] = actor.remote(self.config.threads)
                self._loading[replica] = self.actors[replica].load.remote(self.config)

    def score(self, shares: Mapping[int, SequenceBatch]) -> dict[int, np.ndarray]:
        """Scores float32 [B] of each replica's share. A replica that dies is replaced once and asked again.

        Raises:
            EnvironmentProblem: the model cannot be loaded, or the cluster has no place for a replica.
            WorkerDied: a replica and its replacement died, or one took longer than ``timeout_s``.
            RLError: a replica failed.
        """
        scores: dict[int, np.ndarray] = {}
        dead = self._ask(shares, scores)
        if dead:
            logger.warning(
                "reward %r: %d of %d replicas ended and are started again (%s)",
                self.config.name,
                len(dead),
                self.config.replicas,
                _reason(dead),
            )
            dead = self._ask({replica: shares[replica] for replica in dead}, scores)
        if dead:
            raise WorkerDied(
                f"reward {self.config.name!r}: a worker ended twice on the same samples: {_reason(dead)}\n"
                "    it is often out of memory: lower its batch_tokens or replicas, or set dtype: bfloat16; "
                "`rl resume` continues from the last checkpoint"
            )
        return scores

    def close(self) -> None:
        """End the replicas; a later :meth:`score` starts new ones."""
        import ray

        if ray.is_initialized():
            for actor in self.actors.values():
                ray.kill(actor)
        self.actors.clear()
        self._loading.clear()

    def _ask(self, shares: Mapping[int, SequenceBatch], scores: dict[int, np.ndarray]) -> dict[int, Exception]:
        """Score the shares into ``scores``; returns the replicas that died, which are then forgotten."""
        import ray

        self.start(shares)
        calls = {replica: self.actors[replica].score.remote(share) for replica, share in shares.items()}
        dead: dict[int, Exception] = {}
        for replica, call in calls.items():
            try:
                self._get(self._loading[replica], starting=True)
                scores[replica] = self._get(call)
            except ray.exceptions.RayActorError as error:
                dead[replica] = error
                ray.kill(self.actors.pop(replica))
                del self._loading[replica]
        return dead

    def _get(self, reference: Any, *, starting: bool = False) -> Any:
        import ray

        name = self.config.name
        try:
            return ray.get(reference, timeout=self.config.timeout_s)
        except ray.exceptions.GetTimeoutError:
            raise (
                self._late()
                if starting
                else WorkerDied(
                    f"reward {name!r}: a worker did not answer within {self.config.timeout_s:g} s\n"
                    "    raise its timeout_s if scoring really takes that long, or add replicas",
                    cause="hung",
                )
            ) from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RLError):
                raise error.cause from None
            raise RLError(f"reward {name!r}: a worker failed:\n{error}") from error

    def _late(self) -> RLError:
        import ray

        have = ray.cluster_resources().get("GPU", 0)
        if not self.config.gpus:
            return RLError(
                f"reward {self.config.name!r}: its workers were not ready within {self.config.timeout_s:g} s\n"
                "    raise its timeout_s if loading the model really takes that long"
            )
        return EnvironmentProblem(
            f"reward {self.config.name!r}: its workers were not ready within {self.config.timeout_s:g} s; they need "
            f"{self.config.replicas} × {self.config.gpus:g} GPUs besides those of training, the cluster has {have:g} "
            "in all\n    lower gpus or replicas, or add GPUs"
        )


def _reason(dead: Mapping[int, Exception]) -> str:
    """The first death's reason in one line."""
    lines = [line.strip() for line in str(next(iter(dead.values()))).splitlines() if line.strip()]
    line = next((line for line in lines if "because" in line), lines[0] if lines else "no reason given")
    return line.partition(" Some common causes")[0]  # Ray continues with general advice
