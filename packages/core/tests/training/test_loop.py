"""The order of what a step does, what a checkpoint of it holds, and how a stage ends early."""

from __future__ import annotations

import contextlib
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from rl_core.algorithm import AlgorithmBase
from rl_core.batch import SequenceBatch
from rl_core.contracts.feed import Draw
from rl_core.errors import DataError, Interrupted, RLError
from rl_core.model import NonFiniteBatch
from rl_core.training.algorithm_step import algorithm_step
from rl_core.training.logger_group import Activity, LoggerGroup
from rl_core.training.loop import Loop
from rl_core.training.observers import Observers
from rl_core.training.phases import StepTimes
from rl_core.training.signals import StopRequest
from rl_core.training.state import RunState

STEPS = 4


class Counts(AlgorithmBase):
    """Its state is the number of steps it has taken."""

    def __init__(self, events=()):
        super().__init__(config=None)
        self.events, self.steps = events, 0

    def step(self, batch, models):
        self.steps += 1
        self.events.append(f"algorithm {int(batch.tokens[0])}")
        return {"train/loss": 1.0}

    def state(self):
        return {"steps": self.steps}


class Feed:
    """The batch of a step is its number; two rows a step."""

    def __init__(self, events, *, samples, start, fails_at):
        self.samples, self._events, self._fails_at = samples, events, fails_at
        self.position = 2 * start

    def next(self, step):
        if step == self._fails_at:
            raise DataError(f"step {step}: no rows")
        self.position += 2
        self._events.append(f"draw {step}")
        batch = SequenceBatch.from_lists([[step, 0]], token_columns={"loss_mask": [[0.0, 1.0]]})
        return Draw(batch, {"time/data_s": 0.0}, [{"drawn": step}])


class Logger:
    def __init__(self, events):
        self.events, self.shown, self.rows, self.samples = events, [], {}, {}

    def log(self, step, metrics):
        self.events.append(f"log {step}")
        self.rows[step] = dict(metrics)

    def log_samples(self, step, rows):
        self.samples[step] = list(rows)

    def doing(self, what):
        self.shown.append(what)


class Evaluations:
    def __init__(self, events, steps):
        self._events, self._steps = events, steps

    def due(self, step):
        return step in self._steps

    def run(self, step):
        self._events.append(f"evaluate {step}")
        return {"eval/loss": 0.5}, [{"evaluated": step}]


class Checkpoints:
    """``slow``: each is written in the background until the next step has been evaluated."""

    def __init__(self, events, *, slow, disk_full):
        self.events, self.saved, self.writing, self._slow, self._disk_full = events, {}, False, slow, disk_full

    def save(self, state, *, wait):
        self.events.append(f"save {state.step}" + (" and wait" if wait else ""))
        self.saved[state.step], self.writing = state, self._slow
        return not self._disk_full

    def publish_written(self):
        self.events.append("publish what is written")
        self.writing = False


class Memory:
    """``turns``: who had the memory of shared GPUs, and what happened meanwhile."""

    def __init__(self, events):
        self._events, self.turns = events, []

    def training(self):
        return self._block("trainers")

    def both(self):
        return self._block("both")

    @contextlib.contextmanager
    def _block(self, owner):
        before = len(self._events)
        yield
        self.turns.append((owner, self._events[before:]))


class Trial:
    """A loop over stand-ins; ``events`` tells in which order things happened."""

    def __init__(
        self, folder, *, samples=False, evaluates=(), every=None, start=0, slow=False, disk_full=False, fails_at=None
    ):
        self.events, self.at_end = [], {}
        self.logger, self.memory, self.stop = Logger(self.events), Memory(self.events), StopRequest()
        self.checkpoints = Checkpoints(self.events, slow=slow, disk_full=disk_full)
        loggers = LoggerGroup([("own", self.logger)])
        self.loop = Loop(
            stage=SimpleNamespace(name="train", run=SimpleNamespace(steps=STEPS, checkpoint_every=every)),
            start=RunState("train", start, 2 * start, start, fingerprint="of the data"),
            feed=Feed(self.events, samples=samples, start=start, fails_at=fails_at),
            algorithm=Counts(self.events),
            models={},
            publish=self._publish,
            evaluations=Evaluations(self.events, evaluates),
            checkpoints=self.checkpoints,
            memory=self.memory,
            loggers=loggers,
            observers=Observers(StepTimes(), Activity(loggers)),
            step_end=lambda step, metrics: self.at_end.get(step, lambda: None)(),
            stop=self.stop,
            directory=folder,
        )

    def _publish(self, version):
        self.events.append(f"publish {version}")


def test_a_step_draws_trains_publishes_evaluates_logs_and_saves(tmp_path):
    trial = Trial(tmp_path, samples=True, evaluates=(0, 2, 4), every=2)
    samples = trial.loop.run()
    assert trial.events == [
        *("publish 0", "evaluate 0", "log 0"),
        *("draw 1", "algorithm 1", "publish 1", "log 1"),
        *("draw 2", "algorithm 2", "publish 2", "evaluate 2", "log 2", "save 2"),
        *("draw 3", "algorithm 3", "publish 3", "log 3"),
        *("draw 4", "algorithm 4", "publish 4", "evaluate 4", "log 4", "save 4 and wait"),
    ]
    assert samples == [{"evaluated": 4}]
    assert trial.logger.samples[2] == [{"drawn": 2}, {"evaluated": 2}]


def test_weights_are_published_only_before_an_evaluation_where_nothing_is_sampled(tmp_path):
    trial = Trial(tmp_path, evaluates=(2,))
    trial.loop.run()
    assert [event for event in trial.events if event.startswith(("publish", "evaluate"))] == [
        "publish 0",
        "publish 2",
        "evaluate 2",
    ]


def test_the_metrics_of_a_step_are_those_of_its_parts(tmp_path):
    trial = Trial(tmp_path, evaluates=(0, 2))
    trial.loop.run()
    step = {"time/data_s", "train/loss", "train/tokens", "train/loss_tokens", "train/sequences"}
    step |= {"train/tokens_per_second", "time/train_s", "time/step_s"}
    assert set(trial.logger.rows[0]) == {"eval/loss", "time/eval_s"}
    assert set(trial.logger.rows[1]) == step
    assert set(trial.logger.rows[2]) == step | {"eval/loss", "time/eval_s", "time/weights_s"}


def test_loggers_show_what_a_step_is_busy_with(tmp_path):
    trial = Trial(tmp_path, evaluates=(4,))
    trial.loop.run()
    shown = ["sampling", None, "training", None]
    assert trial.logger.shown == [*shown * STEPS, "evaluating", None, "saving a checkpoint", None]


def test_trainers_and_generators_on_the_same_gpus_take_turns(tmp_path):
    trial = Trial(tmp_path, samples=True, evaluates=(4,))
    trial.loop.run()
    assert trial.memory.turns[-4:] == [
        ("trainers", ["algorithm 4"]),
        ("both", ["publish 4"]),
        ("both", ["evaluate 4"]),
        ("trainers", ["save 4 and wait"]),
    ]


def test_a_checkpoint_holds_the_data_the_weights_and_the_algorithm_of_its_step(tmp_path):
    trial = Trial(tmp_path, every=3, start=1)
    trial.loop.run()
    state = trial.checkpoints.saved[3]
    assert (state.step, state.position, state.weights_version, state.algorithm) == (3, 6, 3, {"steps": 2})
    assert (state.stage, state.fingerprint) == ("train", "of the data")
    assert state.metrics == trial.logger.rows[3]


def test_a_resumed_stage_neither_evaluates_nor_publishes_anew_what_it_does_not_sample_from(tmp_path):
    trial = Trial(tmp_path, evaluates=(0,), start=3)
    trial.loop.run()
    assert trial.events == ["draw 4", "algorithm 4", "log 4", "save 4 and wait"]


def test_a_checkpoint_that_is_written_in_the_background_is_published_in_the_next_step(tmp_path):
    trial = Trial(tmp_path, every=1, slow=True)
    trial.loop.run()
    assert trial.events[4:10] == ["save 1", "draw 2", "algorithm 2", "publish what is written", "log 2", "save 2"]


def test_a_request_to_stop_saves_after_the_step(tmp_path):
    trial = Trial(tmp_path)
    trial.at_end[2] = trial.stop.request
    with pytest.raises(Interrupted, match=r"^stopped after step 2 of stage 'train'; a checkpoint is saved\n"):
        trial.loop.run()
    assert trial.events[-2:] == ["log 2", "save 2 and wait"]


def test_a_last_checkpoint_that_cannot_be_saved_fails_the_run(tmp_path):
    trial = Trial(tmp_path, disk_full=True)
    with pytest.raises(
        RLError, match=r"^stage 'train' is trained, but the checkpoint of its last step cannot be saved"
    ):
        trial.loop.run()


def test_a_stop_without_room_for_a_checkpoint_says_that_an_earlier_one_is_kept(tmp_path):
    trial = Trial(tmp_path, disk_full=True)
    trial.stop.request()
    with pytest.raises(Interrupted, match=r"its checkpoint cannot be saved, an earlier one is kept\n"):
        trial.loop.run()


def test_what_is_wrong_with_a_batch_ends_the_run_after_the_step_before(tmp_path):
    trial = Trial(tmp_path, fails_at=3)
    with pytest.raises(DataError, match=r"^step 3: no rows$"):
        trial.loop.run()
    assert trial.events[-1] == "log 2"


def step(folder, algorithm, batch):
    return algorithm_step(algorithm, batch, {}, stage="train", step=7, directory=folder)


def test_a_step_whose_samples_were_all_dropped_trains_nothing(tmp_path, caplog):
    algorithm = Counts()
    empty = SequenceBatch.from_lists([[1, 2]]).select(np.zeros(1, bool))
    with caplog.at_level(logging.WARNING, logger="rl"):
        metrics = step(tmp_path, algorithm, empty)
    assert metrics == dict.fromkeys(("train/tokens", "train/loss_tokens", "train/sequences", "time/train_s"), 0.0)
    assert [r.getMessage() for r in caplog.records] == [
        "train: step 7 has nothing to train on; the weights stay as they are"
    ]
    assert algorithm.steps == 0


def test_the_batch_of_a_loss_that_is_not_finite_is_saved(tmp_path):
    batch = SequenceBatch.from_lists([[4, 2]], token_columns={"loss_mask": [[0.0, 1.0]]})

    class Diverges(Counts):
        def step(self, batch, models):
            raise NonFiniteBatch("policy", {"loss": float("nan"), "grad_norm": 1.0}, batch)

    with pytest.raises(RLError) as raised:
        step(tmp_path, Diverges(), batch)
    path = tmp_path / "failed" / "train-step-000007.npz"
    assert str(raised.value) == (
        "stage 'train', step 7: the policy loss or gradient is not finite (loss nan, gradient norm 1.0); the step was "
        f"not applied\n    the batch is saved for inspection in {path}\n"
        "    try a lower algorithm.learning_rate, or continue from the last checkpoint with `rl resume`"
    )
    assert np.load(path)["tokens"].tolist() == [4, 2]
