import os

import pytest
from rl_core.cluster.calls import actor_of, fetch
from rl_core.cluster.pool import group_topologies
from rl_core.contracts.backend import Topology
from rl_core.errors import DataError, RLError, WorkerDied

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def worker(cluster):
    import ray

    class Unreadable(Exception):
        """Pickle calls it with one argument."""

        def __init__(self, first, second):
            super().__init__(f"{first} and {second}")

    @ray.remote(num_cpus=1, max_restarts=0)
    class Worker:
        def fail(self):
            return {}["missing"]

        def explain(self):
            raise DataError("rows.jsonl:3: bad")

        def fail_with_what_cannot_be_read_again(self):
            raise Unreadable("first", "second")

        def fail_as_ray_does(self):
            import ray

            raise ray.exceptions.GetTimeoutError("the engine's own wait")

        def end(self):
            os._exit(3)

        def sleep(self):
            import time

            time.sleep(60)

    return Worker


class Directory:
    """Of workers that are well."""

    def __init__(self):
        self.checks = 0

    def check(self):
        self.checks += 1

    def info(self, actor_id):
        return None

    def death(self, actor_id, ray_says, *, what):
        return WorkerDied(f"{actor_id} ended during {what}")

    def overdue(self, actor_ids, timeout_s, *, what):
        return WorkerDied(f"{len(actor_ids)} did not answer within {timeout_s:g} s in {what}")


def fetched(calls, timeout_s=60, what="", directory=None):
    return fetch(calls, timeout_s, what=what, directory=directory or Directory())


def test_an_exception_in_a_worker_keeps_its_traceback(worker):
    with pytest.raises(RLError) as raised:
        fetched([worker.remote().fail.remote()], what="policy train")
    text = str(raised.value)
    assert text.startswith("a worker failed in policy train:\n")
    assert "KeyError: 'missing'" in text
    assert 'return {}["missing"]' in text


def test_an_exception_that_cannot_be_read_again_is_told_as_text(worker):
    with pytest.raises(RLError) as raised:
        fetched([worker.remote().fail_with_what_cannot_be_read_again.remote()], what="policy train")
    assert str(raised.value).startswith("a worker failed in policy train:\n")
    assert "first and second" in str(raised.value)


def test_what_a_worker_raises_is_no_failure_of_ray_although_it_is_an_exception_of_ray(worker):
    with pytest.raises(RLError, match=r"^a worker failed in policy train:\n(.*\n)*.*the engine's own wait"):
        fetched([worker.remote().fail_as_ray_does.remote()], what="policy train")


def test_an_explained_error_arrives_as_it_was_raised(worker):
    with pytest.raises(DataError) as raised:
        fetched([worker.remote().explain.remote()])
    assert "rows.jsonl:3: bad" in str(raised.value)


def test_a_dead_worker_is_noticed_although_another_one_never_answers(worker):
    stuck, dying = worker.remote(), worker.remote()
    calls = [stuck.sleep.remote(), dying.end.remote()]
    with pytest.raises(WorkerDied) as raised:
        fetched(calls, what="policy train")
    assert str(raised.value) == f"{actor_of(calls[1])} ended during policy train"


def test_a_silent_worker_runs_into_its_deadline(worker):
    with pytest.raises(WorkerDied, match=r"^1 did not answer within 0\.5 s in generate$"):
        fetched([worker.remote().sleep.remote()], 0.5, what="generate")


@pytest.fixture
def waits(monkeypatch):
    """How many references each ``ray.wait`` was asked about."""
    import ray

    asked, wait = [], ray.wait

    def counted(references, **options):
        asked.append(len(references))
        return wait(references, **options)

    monkeypatch.setattr(ray, "wait", counted)
    return asked


def test_answers_come_in_the_order_of_the_calls_and_are_looked_at_once(cluster, waits):
    import ray

    assert fetched([ray.put(i) for i in range(64)]) == list(range(64))
    assert waits == [64]


def test_a_failed_call_is_noticed_although_another_one_never_answers(worker, waits):
    directory = Directory()
    stuck = worker.remote().sleep.remote()
    with pytest.raises(DataError):
        fetched([stuck, worker.remote().explain.remote()], 55, directory=directory)
    assert set(waits) == {2}
    assert len(waits) == directory.checks + 1


def test_ranks_must_agree_on_the_data_parallel_layout():
    assert group_topologies([Topology(0, 2), Topology(1, 2)])[1].dp_rank == 1
    tensor_parallel = [Topology(0, 1, True), Topology(0, 1, False)]
    assert len(group_topologies(tensor_parallel)) == 2
    with pytest.raises(RLError, match="disagree on the data-parallel layout"):
        group_topologies([Topology(0, 2), Topology(0, 2)])
