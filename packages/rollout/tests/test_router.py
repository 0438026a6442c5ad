"""The router over real generator processes that need no torch."""

import re
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from frail_workers import DIE, FULL, STOP, Options
from rl_core.batch import SequenceBatch
from rl_core.cluster.pool import Deadlines, WorkerPool
from rl_core.cluster.resources import Resources
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.generator import SamplingParams
from rl_core.discovery.registry import load_registry
from rl_core.errors import RLError, WorkerDied
from rl_rollout import replacements as replacements_module
from rl_rollout import router as router_module
from rl_rollout.replacements import GeneratorReplacements
from rl_rollout.router import Router, _checked

CONTEXT = WorkerContext(0, 1, "", 0)


@pytest.fixture
def fleet(cluster, tmp_path):
    """Start replicas behind a router; returns it."""
    pools = []

    def start(replicas, *, replaced=True, delay_s=0.0, marker=None):
        pool = WorkerPool(
            manifest=load_registry().manifest(),
            logs=tmp_path,
            deadlines=Deadlines(start_s=100, call_s=100, heartbeat_s=6.0, resources_s=10),
        )
        pools.append(pool)
        resources = Resources(ranks=0, replicas=replicas, gpus=0, nodes=1, threads=1, generator_threads=1)
        pool.prepare(resources)
        config = Options(delay_s=delay_s, marker=marker and str(marker), broken=str(tmp_path / "broken"))
        choice = SimpleNamespace(component=SimpleNamespace(factory="frail_workers:Generator"), config=config)
        pool.build(pool.generators, choice, kind="generate", context=CONTEXT)

        @contextmanager
        def weights():
            yield [ray.put(7)]

        replacements = GeneratorReplacements(
            pool=pool,
            choice=choice,
            context=CONTEXT,
            model=None,
            tokenizer_path=tmp_path,
            most=replicas,
            weights=weights,
        )
        router = Router(pool.generators, pool, replacements=replacements if replaced else None)
        router.update_weights([ray.put(7)], 1)
        return router

    yield start
    for pool in pools:
        pool.close()


def requests_of(*first_tokens):
    return SequenceBatch.from_lists([np.array([t, 0], np.int32) for t in first_tokens])


def assert_each_is_answered_once(answer, first_tokens, *, n=1, version=1):
    assert answer.sequence_columns["request"].tolist() == np.repeat(np.arange(len(first_tokens)), n).tolist()
    assert answer.sequence_columns["sample"].tolist() == list(range(n)) * len(first_tokens)
    assert answer.tokens[answer.offsets[:-1]].tolist() == np.repeat(first_tokens, n).tolist()
    assert answer.tokens[answer.offsets[1:] - 1].tolist() == (np.repeat(first_tokens, n) + version).tolist()


@pytest.mark.slow
def test_requests_of_dead_and_hung_replicas_are_answered_by_others_and_replacements_join(fleet, tmp_path, caplog):
    caplog.set_level("INFO", logger="rl")
    router = fleet(2, marker=tmp_path / "marker")
    prompts = [1, 2, 3, DIE, 5, 6]
    assert_each_is_answered_once(router.generate(requests_of(*prompts), SamplingParams(n=2)), prompts, n=2)
    assert router.metrics() == {"rollout/replicas": 1.0, "rollout/retried_requests": 3.0}
    assert router.metrics()["rollout/retried_requests"] == 0.0
    assert any(re.match(r"a generator is lost, 1 go on: generator generate-\d \(pid", m) for m in caplog.messages)

    # New weights go to the replacement too, once it is there.
    version = 1
    deadline = time.monotonic() + 100
    while router.replicas < 2:
        assert time.monotonic() < deadline
        version += 1
        router.update_weights([ray.put(7)], version)
        answer = router.generate(requests_of(1, 2), SamplingParams())
        assert_each_is_answered_once(answer, [1, 2], version=version)
    assert len(set(answer.sequence_columns["served_by"].tolist())) == 2

    # A stopped process does not answer, does not die by itself, and would count twice if it went on later.
    (tmp_path / "marker").unlink()
    prompts = [1, STOP, 3, 4]
    answer = router.generate(requests_of(*prompts), SamplingParams())
    assert_each_is_answered_once(answer, prompts, version=version)
    assert router.metrics() == {"rollout/replicas": 1.0, "rollout/retried_requests": 2.0}
    assert any("no heartbeat for 6 s; the process is stopped" in m for m in caplog.messages)


@pytest.mark.slow
def test_without_any_replica_left_the_router_waits_for_a_replacement(fleet, tmp_path):
    router = fleet(1, marker=tmp_path / "marker")
    answer = router.generate(requests_of(1, DIE), SamplingParams())
    assert_each_is_answered_once(answer, [1, DIE])
    assert router.metrics() == {"rollout/replicas": 1.0, "rollout/retried_requests": 2.0}


@pytest.mark.slow
def test_replacements_that_cannot_be_started_are_given_up_with_their_reason(fleet, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(replacements_module, "FAILED_STARTS", 1)
    router = fleet(1)
    (tmp_path / "broken").touch()
    with pytest.raises(WorkerDied, match=r"^generator generate-0 .* ended during generate: "):
        router.generate(requests_of(DIE), SamplingParams())
    (given_up,) = [m for m in caplog.messages if m.startswith("another generator could not be started")]
    assert given_up.startswith(
        "another generator could not be started; no further one will be started: generator generate-1 (pid "
    )
    assert "RuntimeError: the weights file is gone" in given_up


@pytest.mark.slow
def test_requests_go_where_the_fewest_tokens_are_outstanding_and_repeated_deaths_are_blamed_on_them(fleet, monkeypatch):
    router = fleet(2, replaced=False, delay_s=0.01)
    answers = {}
    long = threading.Thread(
        target=lambda: answers.update(long=router.generate(requests_of(1), SamplingParams(max_new_tokens=300)))
    )
    long.start()
    while not any(r.outstanding for r in router._replicas):
        time.sleep(0.01)
    short = router.generate(requests_of(2, 3, 4), SamplingParams(max_new_tokens=2))
    long.join()
    assert len(set(short.sequence_columns["served_by"].tolist())) == 1
    assert answers["long"].sequence_columns["served_by"][0] not in short.sequence_columns["served_by"]
    assert [r.outstanding for r in router._replicas] == [0, 0]

    monkeypatch.setattr(router_module, "ATTEMPTS", 1)
    with pytest.raises(WorkerDied) as caught:
        router.generate(requests_of(FULL), SamplingParams())
    assert (caught.value.role, caught.value.cause) == ("generate", "device_memory")
    assert str(caught.value).startswith(
        "generation failed 1 times on the same requests, each time with the end of the generator; the last time:\n"
        "generator generate-0 (pid "
    )
    with pytest.raises(WorkerDied, match=r"generator generate-1 .* ended during generate: ") as caught:
        router.generate(requests_of(DIE), SamplingParams())
    assert caught.value.worker == "generate-1"


@pytest.mark.parametrize("request_column", [[0, 0, 1], [0, 0], [0, 0, 1, 1, 2, 2]])
def test_an_answer_that_is_not_complete_is_the_plugins_fault(request_column):
    answer = SequenceBatch.from_lists(
        [np.array([1], np.int32)] * len(request_column), sequence_columns={"request": np.array(request_column)}
    )
    with pytest.raises(RLError) as caught:
        _checked(answer, np.array([4, 9]), n=2)
    assert str(caught.value) == (
        "the generator was asked for 2 samples of each of 2 requests and answered "
        f"{len(request_column)} sequences, of requests {sorted(set(request_column))}; the plugin is at fault"
    )
