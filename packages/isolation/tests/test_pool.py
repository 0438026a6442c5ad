"""Several processes: each task has its own deadline, and a future that can be cancelled."""

import asyncio
import threading
import time

import pytest
from rl_isolation.outcome import ProcessEnded, Returned, TimedOut
from rl_isolation.pool import Pool


@pytest.fixture
def pool(service):
    built = []

    def build(size, **options):
        built.append(Pool(service(), size=size, **options))
        return built[-1]

    yield build
    for one in built:
        one.close()


def test_a_task_that_hangs_or_dies_takes_no_other_with_it(pool):
    tasks = [("echo", 1), ("sleep", 600), ("echo", 2), ("leave", 5), ("echo", 3)]
    one, late, two, gone, three = pool(2).map(tasks, timeout_s=1.0)
    assert [one, two, three] == [Returned(1), Returned(2), Returned(3)]
    assert isinstance(late, TimedOut)
    assert gone == ProcessEnded("exit code 5")


def test_cancelling_kills_the_process_at_work(pool, ends):
    one = pool(1)
    ((answer),) = one.map([("pid",)], timeout_s=60)
    running = one.submit(("sleep", 600), timeout_s=600)
    time.sleep(0.2)
    assert running.cancel()
    assert ends(answer.value)
    assert one.map([("echo", 1)], timeout_s=60) == [Returned(1)]


def test_a_coroutine_that_is_cancelled_kills_the_process(pool, ends):
    one = pool(1)
    (answer,) = one.map([("pid",)], timeout_s=60)

    async def wait():
        async with asyncio.timeout(0.3):
            await asyncio.wrap_future(one.submit(("spin",), timeout_s=600))

    with pytest.raises(TimeoutError):
        asyncio.run(wait())
    assert ends(answer.value)


def test_processes_are_added_only_where_tasks_wait(pool):
    quick = pool(8, patience_s=60.0)
    quick.map([("echo", n) for n in range(50)], timeout_s=60)
    assert len(quick.pids) == 1
    slow = pool(2, patience_s=0.1)
    assert slow.map([("meet",)] * 2, timeout_s=60) == [Returned(True)] * 2


def test_close_ends_tasks_under_way_and_a_pool_works_again(pool, ends):
    one = pool(2)
    running = [one.submit(("sleep", 600), timeout_s=600) for _ in range(2)]
    threading.Timer(0.5, one.close).start()
    assert [type(r.result(30)) for r in running] == [ProcessEnded, ProcessEnded]
    assert one.map([("echo", 1)] * 3, timeout_s=60) == [Returned(1)] * 3


def test_a_dropped_pool_ends_its_processes(service, ends):
    one = Pool(service(), size=1)
    (answer,) = one.map([("pid",)], timeout_s=60)
    del one
    assert ends(answer.value)
