"""The router over real generator processes that need no torch."""

import asyncio
import re
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from frail_workers import DIE, FULL, REFUSED, STOP, Options
from rl_core.batch import SequenceBatch
from rl_core.cluster.pool import Deadlines, WorkerPool
from rl_core.cluster.resources import Resources
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.generation import GenerationRequest, Sampling
from rl_core.contracts.generator import SamplingParams
from rl_core.discovery.registry import load_registry
from rl_core.errors import RLError, WorkerDied
from rl_rollout import replacements as replacements_module
from rl_rollout.replacements import GeneratorReplacements
from rl_rollout.router import Router
from rl_rollout.routing import outcomes

CONTEXT = WorkerContext(0, 1, "", 0)


@pytest.fixture
def fleet(cluster, tmp_path):
    """Start replicas behind a router; returns it."""
    pools, routers = [], []

    def start(replicas, *, replaced=True, delay_s=0.0, marker=None, generator="Generator"):
        pool = WorkerPool(
            manifest=load_registry().manifest(),
            logs=tmp_path,
            deadlines=Deadlines(start_s=100, call_s=100, heartbeat_s=6.0, resources_s=10),
        )
        pools.append(pool)
        resources = Resources(ranks=0, replicas=replicas, gpus=0, nodes=1, threads=1, generator_threads=1)
        pool.prepare(resources)
        config = Options(delay_s=delay_s, marker=marker and str(marker), broken=str(tmp_path / "broken"))
        choice = SimpleNamespace(component=SimpleNamespace(factory=f"frail_workers:{generator}"), config=config)
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
        routers.append(router)
        router.update_weights([ray.put(7)], 1)
        return router

    yield start
    for router in routers:
        router.close()
    for pool in pools:
        pool.close()


def requests_of(*first_tokens):
    seeds = np.arange(len(first_tokens), dtype=np.uint64)
    return SequenceBatch.from_lists(
        [np.array([t, 0], np.int32) for t in first_tokens], sequence_columns={"seed": seeds}
    )


def served_by(answer):
    """Process ids, which are the first tokens of the completions."""
    return answer.tokens[answer.offsets[:-1] + answer.sequence_columns["prompt_length"]].tolist()


def counts(router):
    found = router.metrics()
    return found["rollout/replicas"], found["rollout/retried_requests"]


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
    assert counts(router) == (1.0, 6.0)
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
    assert len(set(served_by(answer))) == 2

    # A stopped process does not answer, does not die by itself, and would count twice if it went on later.
    (tmp_path / "marker").unlink()
    prompts = [1, STOP, 3, 4]
    answer = router.generate(requests_of(*prompts), SamplingParams())
    assert_each_is_answered_once(answer, prompts, version=version)
    assert counts(router) == (1.0, 2.0)
    assert any("no heartbeat for 6 s; the process is stopped" in m for m in caplog.messages)


@pytest.mark.slow
def test_without_any_replica_left_the_router_waits_for_a_replacement(fleet, tmp_path):
    router = fleet(1, marker=tmp_path / "marker")
    answer = router.generate(requests_of(1, DIE), SamplingParams())
    assert_each_is_answered_once(answer, [1, DIE])
    assert counts(router) == (1.0, 2.0)


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
    while not router.metrics()["rollout/requests_in_flight"]:
        time.sleep(0.01)
    short = router.generate(requests_of(2, 3, 4), SamplingParams(max_new_tokens=2))
    long.join()
    assert len(set(served_by(short))) == 1
    assert served_by(answers["long"])[0] not in served_by(short)

    monkeypatch.setattr(outcomes, "ATTEMPTS", 1)
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


def single(first, *, most=1, id=None):
    tokens = np.array([first, 0], np.int32)
    return GenerationRequest(id or f"r{first}", tokens, Sampling(max_new_tokens=most))


def collected(router, requests):
    """Their completions, in the order in which they came, read in an event loop of its own."""

    async def read():
        return [completion async for completion in router.submit(requests)]

    return asyncio.run(read())


@pytest.mark.slow
def test_single_requests_come_as_they_finish_in_every_event_loop_that_asks(fleet):
    router = fleet(2, replaced=False, delay_s=0.01, generator="StreamingGenerator")
    found = {}

    def ask(name, base):
        requests = [single(base + i, most=most) for i, most in enumerate([60, 1, 30, 1])]
        found[name] = [(c.id, int(c.tokens[1])) for c in collected(router, requests)]

    threads = [threading.Thread(target=ask, args=(name, base)) for name, base in (("a", 10), ("b", 20))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, base in (("a", 10), ("b", 20)):
        assert sorted(found[name]) == [(f"r{base + i}", base + i + 1) for i in range(4)]
        assert [id for id, _ in found[name]][-2:] == [f"r{base + 2}", f"r{base}"]  # the long ones at last


@pytest.mark.slow
def test_aborted_requests_come_with_what_they_have_and_paused_replicas_answer_later(fleet):
    router = fleet(1, replaced=False, delay_s=0.01, generator="StreamingGenerator")
    results = router.submit([single(1, most=100_000), single(2, most=100_000), single(3)])
    router.abort(["r1"])
    router.pause()
    router.resume()
    router.abort()
    assert {(c.id, c.finish) for c in results.all()} >= {("r1", "abort"), ("r2", "abort")}
    assert [c.tokens[1] for c in collected(router, [single(5)])] == [6]


@pytest.mark.slow
def test_an_error_of_the_engine_ends_its_submission_alone(fleet):
    router = fleet(1, replaced=False, delay_s=0.01, generator="StreamingGenerator")
    other = router.submit([single(7, most=50)])
    with pytest.raises(RLError, match=r"generator generate-0 .* failed in generate:\n[^$]*the engine does not like it"):
        collected(router, [single(REFUSED), single(8, most=100_000)])
    assert [c.tokens[1] for c in other.all()] == [8]
    with pytest.raises(ValueError, match="ids are unique"):
        router.submit([single(1), single(1)])


@pytest.mark.slow
def test_without_replacements_nobody_waits_for_ever_once_the_last_replica_is_dead(fleet):
    router = fleet(1, replaced=False, generator="StreamingGenerator")
    with pytest.raises(WorkerDied, match="generator generate-0"):
        collected(router, [single(DIE)])
    with pytest.raises(WorkerDied, match="generator generate-0"):
        collected(router, [single(1)])


@pytest.mark.slow
def test_streamed_requests_of_a_dead_replica_are_answered_by_another(fleet, tmp_path):
    router = fleet(2, marker=tmp_path / "marker", delay_s=0.01, generator="StreamingGenerator")
    answers = collected(router, [single(first, most=20) for first in (1, 2, 3, DIE, 5, 6)])
    assert sorted(int(c.tokens[1]) for c in answers) == sorted(first + 1 for first in (1, 2, 3, DIE, 5, 6))
    assert counts(router)[1] >= 1
