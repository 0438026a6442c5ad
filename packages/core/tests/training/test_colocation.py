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
    turns = Colocation(pool, shared=True)
    turns.both()
    turns.generating()
    turns.generating()
    turns.training()
    turns.both()
    turns.generating()
    assert pool.heard == [
        "trainer sleep",
        "generator sleep",
        "trainer wake",
        "generator wake",
        "trainer sleep",
    ]


def test_weights_are_handed_over_between_two_turns_of_the_generators():
    pool = Pool()
    turns = Colocation(pool, shared=True)
    turns.generating()
    with turns.handing_over():
        assert pool.heard == ["trainer sleep", "trainer wake"]
    assert pool.heard == ["trainer sleep", "trainer wake", "trainer sleep"]


def test_workers_that_share_nothing_stay_awake():
    pool = Pool()
    turns = Colocation(pool, shared=False)
    turns.generating()
    turns.training()
    assert pool.heard == []
