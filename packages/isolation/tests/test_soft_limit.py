"""Threads are added where jobs wait behind one that takes long."""

import queue
import threading
import time
from concurrent.futures import Future

from rl_isolation.soft_limit import SoftLimitThreads


class Hesitant(queue.SimpleQueue):
    """Whoever takes the first job pauses with it in hand."""

    def __init__(self):
        self.taken, self.go_on = threading.Event(), threading.Event()

    def get(self):
        job = super().get()
        if not self.taken.is_set():
            self.taken.set()
            assert self.go_on.wait(60)
        return job


def test_a_job_is_not_left_behind_a_slow_one_whose_thread_still_counts_as_idle():
    threads, quick_done = SoftLimitThreads(2, timeout_s=60), threading.Event()
    jobs = threads._queue = Hesitant()
    slow, quick = Future(), Future()
    threads.submit(lambda: quick_done.wait(60), slow, late=TimeoutError)
    assert jobs.taken.wait(60)
    threads.submit(quick_done.set, quick, late=TimeoutError)
    assert threads.grow(), "it is worth asking again"
    jobs.go_on.set()
    deadline = time.monotonic() + 60
    while not quick.done() and time.monotonic() < deadline:
        threads.grow()
        time.sleep(0.01)
    assert quick.done()
    assert slow.result(60) is True
    threads.close()
