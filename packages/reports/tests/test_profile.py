from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from rl_core.errors import Interrupted, WorkerDied
from rl_core.training.observers import Observers
from rl_reports.phases import Phases
from rl_reports.profile import Profile, Report, free_folder

STEP = {"train": 4.0, "weights": 1.0, "rest": 1.0}
"""Seconds of a step, as the driver sees it."""


class Call:
    """A method of a worker, called as Ray does."""

    def __init__(self, function):
        self.remote = function


class Worker:
    """A host whose component measured 3 of the 4 seconds of each call of train."""

    def __init__(self, name: str, *, can: bool = True, dies: bool = False):
        self.name, self.can, self.dies = name, can, dies
        self.folders: list[str | None] = []
        self.steps = 0
        self.start_profile = Call(self._start)
        self.stop_profile = Call(self._stop)

    def _start(self, folder):
        self.folders.append(folder)
        return lambda: self.can

    def _stop(self):
        def answer():
            if self.dies:
                raise WorkerDied(f"{self.name} is gone", role="generate")
            if not self.can:
                return {}
            if self.folders[-1]:
                open(f"{self.folders[-1]}/{self.name}.trace.json.gz", "w").close()
            steps, self.steps = self.steps, 0
            return {"forward_backward": 2.5 * steps, "optimizer": 0.5 * steps}

        return answer


class Pool:
    def __init__(self, trainers, generators):
        self.trainers, self.generators = trainers, generators

    def ask(self, workers, method, arguments):
        """The way in which generators are asked for completions."""
        assert all(worker in self.generators for worker in workers)
        return [getattr(worker, method).remote(*own) for worker, own in zip(workers, arguments, strict=True)]

    def get(self, calls, what):
        return [call() for call in calls]


@pytest.fixture
def profiled(tmp_path):
    """Takes steps under a profile, as the loop does."""

    def take(steps: range, *, trainers, generators=(), ends_with=None) -> Profile:
        clock = SimpleNamespace(now=0.0)
        phases = Phases(lambda: clock.now)
        stage = SimpleNamespace(
            name="rl",
            backend=SimpleNamespace(name="own"),
            generator=SimpleNamespace(name="sampler"),
            run=SimpleNamespace(steps=steps[-1]),
        )
        profile = Profile(stage, Pool(trainers, list(generators)), free_folder(tmp_path / "profile"), phases)
        loop = Observers(profile, phases)
        try:
            with profile:
                with loop.phase("evaluation"):
                    clock.now += 1000.0  # before the first step
                for step in steps:
                    with loop.step(step):
                        for name, seconds in STEP.items():
                            with loop.phase(name):
                                clock.now += seconds * (10 if trainers[0].folders[-1] else 1)  # a trace costs time
                        for trainer in trainers:
                            trainer.steps += 1
                    clock.now += 100.0
                if ends_with is not None:
                    raise ends_with
        except (Interrupted, WorkerDied):
            pass
        return profile

    return take


def test_a_few_steps_are_traced_and_the_others_are_in_the_table(profiled, tmp_path):
    trainers, generator = [Worker("train-0"), Worker("train-1")], Worker("generate-0")
    report = profiled(range(1, 8), trainers=trainers, generators=[generator]).report
    folder = str(tmp_path / "profile")
    assert [w.folders for w in trainers] == [[None, folder, None]] * 2
    assert generator.folders == [folder]
    assert report.steps == 4
    assert report.seconds == {"rest": 4.0, "train": 4.0, "weights": 4.0, "forward_backward": 10.0, "optimizer": 2.0}
    assert report.total == 4 * sum(STEP.values())
    document = json.loads((tmp_path / "profile" / "phases.json").read_text())
    assert (document["stage"], document["steps"], document["step_s"]) == ("rl", 4, 6.0)
    assert document["traced_steps"] == [2, 3, 4]
    assert document["traces"] == ["generate-0.trace.json.gz", "train-0.trace.json.gz", "train-1.trace.json.gz"]
    assert document["notes"] == []
    assert sum(phase["step_s"] for phase in document["phases"]) == document["step_s"]
    assert [(phase["name"], phase["step_s"]) for phase in document["phases"]] == [
        ("forward_backward", 2.5),
        ("optimizer", 0.5),
        ("train", 1.0),
        ("weights", 1.0),
        ("rest", 1.0),
    ]


def test_the_table_for_a_reader(profiled, tmp_path):
    profiled(range(5, 7), trainers=[Worker("train-0")])
    assert (tmp_path / "profile" / "phases.md").read_text() == (
        "# Where the time of a step goes: stage 'rl', mean of 1 step\n"
        "\n"
        "| phase | seconds per step | share |\n"
        "|---|--:|--:|\n"
        "| forward and backward | 2.5000 | 41.7% |\n"
        "| optimizer | 0.5000 | 8.3% |\n"
        "| training calls, the rest | 1.0000 | 16.7% |\n"
        "| weight transfer | 1.0000 | 16.7% |\n"
        "| rest | 1.0000 | 16.7% |\n"
        "| step | 6.0000 | 100.0% |\n"
    )


def test_a_single_step_is_traced_and_in_the_table(profiled):
    report = profiled(range(9, 10), trainers=[Worker("train-0")]).report
    assert (report.steps, report.traced, report.total) == (1, [9], 60.0)


def test_what_cannot_profile_itself_is_named(profiled):
    report = profiled(range(1, 4), trainers=[Worker("t", can=False)], generators=[Worker("g", can=False)]).report
    assert report.notes == [
        "backend own does not profile itself (start_profile, stop_profile): no trace of it, and forward, backward and "
        "optimizer are in one row, 'training calls, the rest'",
        "generator sampler does not profile itself: no trace of it",
    ]
    assert (report.steps, report.traced) == (2, [2])
    assert report.seconds == {name: 2 * seconds for name, seconds in STEP.items()}


def test_a_generator_that_died_does_not_stop_the_run(profiled):
    report = profiled(range(1, 4), trainers=[Worker("train-0")], generators=[Worker("g", dies=True)]).report
    assert report.traces == ["train-0.trace.json.gz"]


def test_an_interrupted_stage_leaves_its_profile_and_a_failed_one_asks_no_worker(profiled, tmp_path):
    assert profiled(range(1, 3), trainers=[Worker("t")], ends_with=Interrupted("stop")).report.steps == 1
    failed = profiled(range(1, 3), trainers=[Worker("t")], ends_with=WorkerDied("t is gone", role="train"))
    assert failed.report is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile", "profile-2"]
    assert [path.name for path in (tmp_path / "profile-2").iterdir()] == []


def test_what_takes_next_to_no_time_is_shown_as_part_of_the_rest(tmp_path):
    report = Report(tmp_path, "rl", 1, {"rest": 0.25, "weights": 4095.5, "turns": 0.25})
    assert report.rows() == [("weights", "weight transfer", 4095.5, 4095.5 / 4096), ("rest", "rest", 0.5, 0.5 / 4096)]
    assert [row[0] for row in report.rows(least=0)] == ["weights", "turns", "rest"]


@pytest.mark.parametrize(
    ("last", "traced"), [(1, [1]), (2, [2]), (4, [2]), (5, [2, 3]), (7, [2, 3, 4]), (20, [2, 3, 4])]
)
def test_fewer_than_half_of_the_steps_are_traced_where_there_are_more_than_two(profiled, last, traced):
    report = profiled(range(1, last + 1), trainers=[Worker("train-0")]).report
    assert report.traced == traced
    assert report.steps == max(last - len(traced), 1)


def test_a_phase_that_a_plugin_named_has_a_row(tmp_path):
    report = Report(tmp_path, "rl", 2, {"rest": 1.0, "all-reduce": 3.0, "weights": 0.0})
    assert report.rows() == [("rest", "rest", 0.5, 0.25), ("all-reduce", "all-reduce", 1.5, 0.75)]
    assert report.rows(least=0) == report.rows()
    assert report.title == "Where the time of a step goes: stage 'rl', mean of 2 steps"
