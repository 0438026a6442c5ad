import os

import pytest
from rl_core.cluster.workers import fetch, group_topologies
from rl_core.contracts.backend import Topology
from rl_core.errors import DataError, RLError, WorkerDied

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def worker(cluster):
    import ray

    @ray.remote(num_cpus=1, max_restarts=0)
    class Worker:
        def fail(self):
            return {}["missing"]

        def explain(self):
            raise DataError("rows.jsonl:3: bad")

        def end(self):
            os._exit(3)

        def sleep(self):
            import time

            time.sleep(60)

    return Worker


def test_an_exception_in_a_worker_keeps_its_traceback(worker):
    with pytest.raises(RLError) as raised:
        fetch([worker.remote().fail.remote()], 60, what="policy train")
    text = str(raised.value)
    assert text.startswith("a worker failed in policy train:\n")
    assert "KeyError: 'missing'" in text
    assert 'return {}["missing"]' in text


def test_an_explained_error_arrives_as_it_was_raised(worker):
    with pytest.raises(DataError) as raised:
        fetch([worker.remote().explain.remote()], 60)
    assert "rows.jsonl:3: bad" in str(raised.value)


def test_a_dead_worker_is_noticed_although_another_one_never_answers(worker):
    stuck, dying = worker.remote(), worker.remote()
    calls = [stuck.sleep.remote(), dying.end.remote()]
    with pytest.raises(WorkerDied) as raised:
        fetch(calls, 60, what="policy train")
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("a worker process ended during policy train: ")
    assert lines[-1] == ("    see the run's logs/ for its last words; `rl resume` continues from the last checkpoint")


def test_a_silent_worker_runs_into_its_deadline(worker):
    with pytest.raises(RLError) as raised:
        fetch([worker.remote().sleep.remote()], 0.5, what="generate")
    assert str(raised.value) == (
        "a worker did not answer within 0.5 s in generate\n"
        "    raise run.worker_timeout_s if the work really takes that long; see the run's logs/ otherwise"
    )


class Bystander:
    """A crew that is well."""

    def __init__(self):
        self.checks = 0

    def check(self):
        self.checks += 1


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

    assert fetch([ray.put(i) for i in range(64)], 60, crew=Bystander()) == list(range(64))
    assert waits == [64]


def test_a_failed_call_is_noticed_although_another_one_never_answers(worker, waits):
    crew = Bystander()
    stuck = worker.remote().sleep.remote()
    with pytest.raises(DataError):
        fetch([stuck, worker.remote().explain.remote()], 55, crew=crew)
    assert set(waits) == {2}
    assert len(waits) == crew.checks + 1


def test_ranks_must_agree_on_the_data_parallel_layout():
    assert group_topologies([Topology(0, 2), Topology(1, 2)])[1].dp_rank == 1
    tensor_parallel = [Topology(0, 1, True), Topology(0, 1, False)]
    assert len(group_topologies(tensor_parallel)) == 2
    with pytest.raises(RLError, match="disagree on the data-parallel layout"):
        group_topologies([Topology(0, 2), Topology(0, 2)])
