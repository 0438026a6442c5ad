"""Steps that are asked for, ahead of the metrics of the one before where nothing lies between."""

from __future__ import annotations

import contextlib
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from rl_core.algorithm import AlgorithmBase, can_begin
from rl_core.batch import SequenceBatch
from rl_core.errors import DataError, Interrupted, RLError
from rl_core.model import NonFiniteBatch
from rl_core.rollout.feed import Draw
from rl_core.training.loop import Loop, LoopHooks
from rl_core.training.phases import Phases
from rl_core.training.signals import StopRequest
from rl_core.training.updates import Updates

STEPS = 5


class Plain(AlgorithmBase):
    """Notes in ``events`` when it is asked for a step and when somebody waits for it."""

    def __init__(self):
        super().__init__(config=None)
        self.events, self.asked = [], 0

    def step(self, batch, models):
        self.events.append(f"step {int(batch.tokens[0])}")
        return {"train/loss": 1.0}


class Ahead(Plain):
    def step(self, batch, models):
        return self.begin(batch, models)()

    def begin(self, batch, models):
        step = int(batch.tokens[0])
        self.events.append(f"ask {step}")

        def wait():
            self.events.append(f"wait {step}")
            return {"train/loss": 1.0}

        return wait


class Feed:
    """The batch of a step is its number."""

    def __init__(self, *, samples=False, fails_at=None):
        self.samples, self._fails_at, self.cursor = samples, fails_at, SimpleNamespace(position=0)

    def next(self, step):
        if step == self._fails_at:
            raise DataError(f"step {step}: no rows")
        self.cursor.position = step
        return Draw(SequenceBatch.from_lists([[step, 0]], token_columns={"loss_mask": [[0.0, 1.0]]}))

    def close(self):
        pass


class Checkpoints:
    """Keeps the position of the data with the step of each checkpoint."""

    def __init__(self, folder):
        self.folder, self.saved = folder / "checkpoints", {}

    def begin(self, state, write):
        self.saved[state.step] = state.position

    def commit(self, step):
        return self.folder / str(step)


class Loggers:
    """``shown``: what a console shows while somebody waits."""

    def __init__(self, events):
        self.events, self.shown = events, None

    @contextlib.contextmanager
    def doing(self, what):
        self.shown = what
        yield
        self.shown = None

    def log(self, step, metrics):
        self.events.append(f"log {step}")

    def log_samples(self, step, samples):
        pass


class Trial:
    """A loop over stand-ins; ``events`` tells in which order things happened."""

    def __init__(self, folder, algorithm, feed, *, every=None, evaluates=(), slow_saves=0, profile=None):
        self.algorithm, self.feed, self.checkpoints, self.stop = algorithm, feed, Checkpoints(folder), StopRequest()
        self._pending, self._slow_saves = 0, slow_saves
        nothing = SimpleNamespace(training=lambda: None, generating=lambda: None, both=lambda: None)
        policy = SimpleNamespace(
            role=SimpleNamespace(name="policy"), is_saving=self._is_saving, finish_saving=lambda: None
        )
        evaluator = SimpleNamespace(evaluate=lambda *_: None)
        driver = SimpleNamespace(
            algorithm=algorithm,
            fingerprint="",
            evaluators=[(SimpleNamespace(name="e"), evaluator)] if evaluates else [],
        )
        parts = SimpleNamespace(
            stage=SimpleNamespace(name="train", run=SimpleNamespace(steps=STEPS, checkpoint_every=every)),
            driver=driver,
            models={},
            policy=policy,
            router=None,
            turns=nothing,
            feed=lambda position: feed,
            publish_weights=lambda version: algorithm.events.append(f"publish {version}"),
        )
        self.loop = Loop(
            parts=parts,
            checkpoints=self.checkpoints,
            loggers=Loggers(algorithm.events),
            hooks=LoopHooks(step_end=self._step_end, checkpoint=lambda step, path: None),
            stop=self.stop,
            directory=folder,
            profile=profile,
        )
        self.loop._due = lambda step: driver.evaluators if step in evaluates else []
        self.loop._evaluate = lambda step: ({}, [])
        self.at_end = {}

    def run(self):
        self.loop.run()
        return self.algorithm.events

    def _step_end(self, step, metrics):
        self.at_end.get(step, lambda: None)()

    def _is_saving(self):
        self.algorithm.events.append("saving?")
        self._slow_saves -= 1
        return self._slow_saves >= 0


def test_a_step_is_asked_for_before_the_metrics_of_the_one_before(tmp_path):
    events = Trial(tmp_path, Ahead(), Feed()).run()
    expected = (
        "publish 0, ask 1, ask 2, wait 1, log 1, ask 3, wait 2, log 2, ask 4, wait 3, log 3, ask 5, wait 4, log 4"
    )
    assert ", ".join(events) == f"{expected}, wait 5, log 5"


def test_the_console_says_what_is_waited_for(tmp_path):
    shown = []

    class Watched(Ahead):
        def begin(self, batch, models):
            wait = super().begin(batch, models)
            return lambda: shown.append(trial.loop.loggers.shown) or wait()

    trial = Trial(tmp_path, Watched(), Feed())
    trial.run()
    assert shown == ["training"] * STEPS


def test_an_algorithm_that_cannot_be_asked_takes_one_step_at_a_time(tmp_path):
    events = Trial(tmp_path, Plain(), Feed()).run()
    assert events[1:5] == ["step 1", "log 1", "step 2", "log 2"]


def test_a_class_with_a_step_of_its_own_does_not_inherit_how_another_begins(tmp_path):
    class Other(Ahead):
        def step(self, batch, models):
            return Plain.step(self, batch, models)

    assert [can_begin(kind()) for kind in (Ahead, Plain, Other)] == [True, False, False]
    assert Trial(tmp_path, Other(), Feed()).run()[1:3] == ["step 1", "log 1"]


def test_nothing_is_begun_where_weights_are_sampled_from(tmp_path):
    events = Trial(tmp_path, Ahead(), Feed(samples=True)).run()
    assert events[:5] == ["publish 0", "ask 1", "wait 1", "publish 1", "log 1"]


def test_nothing_is_begun_before_an_evaluation(tmp_path):
    events = Trial(tmp_path, Ahead(), Feed(), evaluates=(2,)).run()
    assert events[1:10] == ["ask 1", "ask 2", "wait 1", "log 1", "wait 2", "publish 2", "log 2", "ask 3", "ask 4"]


def test_a_checkpoint_holds_the_weights_and_the_data_of_its_step(tmp_path):
    trial = Trial(tmp_path, Ahead(), Feed(), every=2)
    events = trial.run()
    assert trial.checkpoints.saved == {2: 2, 4: 4, 5: 5}
    assert events.index("log 2") < events.index("ask 3")
    assert events.index("log 4") < events.index("ask 5")


def test_nothing_is_begun_while_a_checkpoint_is_being_written(tmp_path):
    events = Trial(tmp_path, Ahead(), Feed(), every=1, slow_saves=1).run()
    assert "ask 1, wait 1, log 1, saving?, ask 2, wait 2" in ", ".join(events)


def test_a_profiled_run_measures_one_step_after_the_other(tmp_path):
    profile = contextlib.nullcontext(SimpleNamespace())
    profile.before = lambda step: None
    events = Trial(tmp_path, Ahead(), Feed(), profile=profile).run()
    assert events[1:4] == ["ask 1", "wait 1", "log 1"]


def test_a_request_to_stop_saves_after_the_step_that_has_begun(tmp_path):
    trial = Trial(tmp_path, Ahead(), Feed())
    trial.at_end[2] = trial.stop.request
    with pytest.raises(Interrupted, match=r"^stopped after step 3 of stage 'train'; a checkpoint is saved\n"):
        trial.run()
    assert trial.checkpoints.saved == {3: 3}
    assert trial.algorithm.events[-2:] == ["wait 3", "log 3"]


def test_what_is_wrong_with_the_next_batch_does_not_lose_the_metrics_of_this_one(tmp_path):
    trial = Trial(tmp_path, Ahead(), Feed(fails_at=3))
    with pytest.raises(DataError, match=r"^step 3: no rows$"):
        trial.run()
    assert trial.algorithm.events[-2:] == ["wait 2", "log 2"]


def updates(folder, algorithm):
    parts = SimpleNamespace(stage=SimpleNamespace(name="train"), driver=SimpleNamespace(algorithm=algorithm), models={})
    return Updates(parts, folder, phases=Phases())


def test_a_step_whose_samples_were_all_dropped_trains_nothing(tmp_path, caplog):
    algorithm = Ahead()
    empty = SequenceBatch.from_lists([[1, 2]]).select(np.zeros(1, bool))
    asked = updates(tmp_path, algorithm)
    with caplog.at_level(logging.WARNING, logger="rl"):
        metrics = asked.finish(asked.begin(7, empty, {}))
    assert metrics == dict.fromkeys(("train/tokens", "train/loss_tokens", "train/sequences", "time/train_s"), 0.0)
    assert [r.getMessage() for r in caplog.records] == [
        "train: step 7 has nothing to train on; the weights stay as they are"
    ]
    assert algorithm.events == []


def test_the_batch_of_a_loss_that_is_not_finite_is_saved(tmp_path):
    batch = SequenceBatch.from_lists([[4, 2]], token_columns={"loss_mask": [[0.0, 1.0]]})

    class Diverges(Ahead):
        def begin(self, batch, models):
            def wait():
                raise NonFiniteBatch("policy", {"loss": float("nan"), "grad_norm": 1.0}, batch)

            return wait

    asked = updates(tmp_path, Diverges())
    with pytest.raises(RLError) as raised:
        asked.finish(asked.begin(7, batch, {}))
    path = tmp_path / "failed" / "train-step-000007.npz"
    assert str(raised.value) == (
        "stage 'train', step 7: the policy loss or gradient is not finite (loss nan, gradient norm 1.0); the step was "
        f"not applied\n    the batch is saved for inspection in {path}\n"
        "    try a lower algorithm.learning_rate, or continue from the last checkpoint with `rl resume`"
    )
    assert np.load(path)["tokens"].tolist() == [4, 2]


def test_the_time_of_a_step_begins_when_the_one_before_has_ended(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("rl_core.training.updates.time.perf_counter", lambda: clock.now)

    class Slow(Ahead):
        def begin(self, batch, models):
            def wait():
                clock.now += 3.0
                return {}

            return wait

    asked = updates(tmp_path, Slow())
    batch = SequenceBatch.from_lists([[4, 2]], token_columns={"loss_mask": [[0.0, 1.0]]})
    first, second = asked.begin(1, batch, {}), asked.begin(2, batch, {})
    times = [asked.finish(first)["time/train_s"]]
    clock.now += 1.0  # logging, beside the second
    times.append(asked.finish(second)["time/train_s"])
    assert times == [3.0, 4.0]
