"""The reward with its workers."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from rl_core.batch import SequenceBatch
from rl_core.contracts.reward import Sample
from rl_core.errors import EnvironmentProblem, RLError, WorkerDied
from rl_reward_model.pool import ReplicaPool
from rl_reward_model.replica import Replica
from rl_reward_model.reward import ModelReward

pytestmark = pytest.mark.slow


@pytest.fixture
def reward(cluster: str, config: Callable) -> Iterator[Callable[..., ModelReward]]:
    built: list[ModelReward] = []

    def build(**fields: Any) -> ModelReward:
        built.append(ModelReward(config(**fields)))
        return built[-1]

    yield build
    for one in built:
        one.close()


def test_scores_come_back_in_order_from_any_number_of_replicas(
    reward: Callable, samples: list[Sample], plain_scores: Callable
) -> None:
    expected = plain_scores(samples)
    one = reward(batch_tokens=100)
    scores = one.score(samples)
    assert all(type(score) is float for score in scores)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    assert scores[1] == scores[6]  # the same text, so exactly the same reward
    assert one.score(samples) == scores
    assert one.score([]) == []

    np.testing.assert_allclose(one.score(samples[::-1]), expected[::-1], rtol=0, atol=1e-5)
    two = reward(replicas=2, normalize={"mean": 2.0, "std": 4.0})
    np.testing.assert_allclose(two.score(samples), (np.array(expected) - 2) / 4, rtol=0, atol=1e-5)
    np.testing.assert_allclose(two.score(samples[:1]), (np.array(expected[:1]) - 2) / 4, rtol=0, atol=1e-5)


def test_a_killed_worker_is_replaced_and_the_samples_are_scored(
    reward: Callable, samples: list[Sample], caplog: pytest.LogCaptureFixture
) -> None:
    served = reward(replicas=2)
    before = served.score(samples)
    pids = [ray.get(actor.pid.remote()) for actor in served._pool.actors.values()]
    os.kill(pids[1], signal.SIGKILL)
    with caplog.at_level(logging.WARNING):
        assert served.score(samples) == before
    assert [message.split("(")[0] for message in caplog.messages] == [
        "reward 'model': 1 of 2 replicas ended and are started again "
    ]
    after = [ray.get(actor.pid.remote()) for actor in served._pool.actors.values()]
    assert pids[0] in after
    assert pids[1] not in after


def call_until_dead(actor: Any) -> None:
    """Ray kills an actor soon after it was told to."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ray.get(actor.pid.remote(), timeout=60)


def test_close_ends_the_workers_and_a_later_score_starts_them_again(reward: Callable, samples: list[Sample]) -> None:
    served = reward()
    scores = served.score(samples)
    (actor,) = served._pool.actors.values()
    served.close()
    served.close()
    with pytest.raises(ray.exceptions.RayActorError):
        call_until_dead(actor)
    assert served.score(samples) == scores


def test_a_worker_that_dies_again_stops_the_run(cluster: str, config: Callable) -> None:
    class Dying(Replica):
        def load(self, config: Any) -> None:
            """Nothing to load."""

        def score(self, batch: SequenceBatch) -> np.ndarray:
            os._exit(1)

    pool = ReplicaPool(config(), worker=Dying)
    with pytest.raises(WorkerDied) as caught:
        pool.score({0: SequenceBatch.from_lists([[3, 4]])})
    first, second = str(caught.value).split("\n")
    assert first.startswith("reward 'model': a worker ended twice on the same samples: ")
    assert second == (
        "    it is often out of memory: lower its batch_tokens or replicas, or set dtype: bfloat16; "
        "`rl resume` continues from the last checkpoint"
    )
    pool.close()


def test_a_worker_that_hangs_is_an_error(cluster: str, config: Callable) -> None:
    class Hanging(Replica):
        def load(self, config: Any) -> None:
            """Nothing to load."""

        def score(self, batch: SequenceBatch) -> np.ndarray:
            import time

            time.sleep(600)

    pool = ReplicaPool(config(timeout_s=10), worker=Hanging)
    with pytest.raises(RLError) as caught:
        pool.score({0: SequenceBatch.from_lists([[3, 4]])})
    pool.close()
    assert str(caught.value) == (
        "reward 'model': a worker did not answer within 10 s\n"
        "    raise its timeout_s if scoring really takes that long, or add replicas"
    )


def test_a_worker_that_cannot_load_the_model_says_why(
    reward: Callable, samples: list[Sample], folder: str, tmp_path: Path
) -> None:
    path = tmp_path / "empty"
    shutil.copytree(folder, path)
    (path / "model.safetensors").unlink()
    with pytest.raises(EnvironmentProblem) as caught:
        reward(path=str(path)).score(samples)
    assert str(caught.value).startswith(f"cannot read the model of the reward 'model', {path}: ")
    assert "no file named" in str(caught.value)


def test_gpus_that_the_cluster_lacks_are_an_error(reward: Callable, samples: list[Sample]) -> None:
    if ray.cluster_resources().get("GPU"):
        pytest.skip("this cluster has GPUs")
    with pytest.raises(EnvironmentProblem) as caught:
        reward(gpus=1, replicas=2, timeout_s=2).score(samples)
    assert str(caught.value) == (
        "reward 'model': its workers were not ready within 2 s; they need 2 × 1 GPUs besides those of training, "
        "the cluster has 0 in all\n    lower gpus or replicas, or add GPUs"
    )
