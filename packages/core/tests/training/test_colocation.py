import contextlib

import pytest
from rl_core.training.colocation import Colocation


class Worker:
    """Notes what it is asked, like a Ray actor's handle."""

    def __init__(self, name, heard):
        self.call = self
        self._name, self._heard = name, heard

    def remote(self, method):
        self._heard.append(f"{self._name} {method}")
        return method


class Pool:
    def __init__(self):
        self.heard = []
        self.trainers = [Worker("trainer", self.heard)]
        self.generators = [Worker("generator", self.heard)]

    def get(self, references, what):
        return references


def test_a_step_on_shared_gpus_frees_memory_before_it_takes_any():
    pool = Pool()
    memory = Colocation(pool, shared=True)
    for block in (memory.both, memory.generating, memory.generating, memory.training, memory.both, memory.generating):
        with block():
            pass
    assert pool.heard == [
        "trainer sleep",
        "generator sleep",
        "trainer wake",
        "generator wake",
        "trainer sleep",
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_weights_are_handed_over_while_the_generators_have_the_memory(fails):
    pool = Pool()
    memory = Colocation(pool, shared=True)
    with memory.generating(), contextlib.suppress(ValueError):
        with memory.both():
            assert pool.heard == ["trainer sleep", "trainer wake"]
            if fails:
                raise ValueError
        assert pool.heard == ["trainer sleep", "trainer wake", "trainer sleep"]
    assert pool.heard == ["trainer sleep", "trainer wake", "trainer sleep"]


def test_handing_memory_over_is_a_phase():
    phases = []

    @contextlib.contextmanager
    def phase(name):
        phases.append(name)
        yield

    memory = Colocation(Pool(), shared=True, phase=phase)
    with memory.both():
        assert phases == [], "both have it at first"
    with memory.training(), memory.training():
        assert phases == ["turns"]


def test_workers_that_share_nothing_stay_awake():
    pool = Pool()
    memory = Colocation(pool, shared=False)
    with memory.generating(), memory.training():
        pass
    assert pool.heard == []
