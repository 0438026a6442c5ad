"""Checkpoints of models that are written at once or in the background, and continuing from one."""

import pytest
from rl_core.errors import RLError, StorageError
from rl_core.training.checkpoint import CheckpointStore, read_state
from rl_core.training.saving import Checkpoints, restore
from rl_core.training.state import RunState


class Role:
    def __init__(self, *, trainable):
        self.trainable = trainable


class Model:
    """``writes_for``: how many times it is asked whether it still writes before it has written."""

    def __init__(self, value=b"", *, trainable=True, writes_for=0, full=""):
        self.role, self.value = Role(trainable=trainable), value
        self._writes_for, self._full, self._waiting = writes_for, full, None

    def save(self, directory):
        if self._full == "save":
            raise StorageError("no room")
        self._waiting = f"{directory}/weights.bin", self.value
        self._left = self._writes_for
        if not self._left:
            self.finish_saving()

    def is_saving(self):
        self._left -= 1
        if self._left < 0:
            self.finish_saving()
        return self._left >= 0

    def finish_saving(self):
        if self._full == "background":
            raise StorageError("no room")
        if self._waiting is not None:
            with open(self._waiting[0], "wb") as file:
                file.write(self._waiting[1])
            self._waiting = None

    def restore(self, directory):
        with open(f"{directory}/weights.bin", "rb") as file:
            self.value = file.read()


def state(step):
    return RunState("train", step, 2 * step, step, algorithm={"step": step})


@pytest.fixture
def saving(tmp_path):
    """``(checkpoints, published)`` for models."""

    def of(**models):
        published = []
        return Checkpoints(
            CheckpointStore(tmp_path), models, published=lambda *event: published.append(event)
        ), published

    return of


def test_what_is_written_at_once_is_published_at_once(saving, tmp_path):
    checkpoints, published = saving(policy=Model(b"new"), reference=Model(trainable=False))
    assert checkpoints.save(state(3), wait=False)
    path = tmp_path / "step-000003"
    assert published == [(3, str(path))]
    assert not checkpoints.writing
    assert (path / "policy" / "weights.bin").read_bytes() == b"new"
    assert read_state(path) == state(3)
    assert not (path / "reference").exists()


def test_what_is_written_in_the_background_is_published_once_it_is_complete(saving, tmp_path):
    checkpoints, published = saving(policy=Model(b"new", writes_for=2))
    assert checkpoints.save(state(3), wait=False)
    assert checkpoints.writing
    checkpoints.publish_written()
    assert published == []
    checkpoints.publish_written()
    assert published == [(3, str(tmp_path / "step-000003"))]
    checkpoints.publish_written()
    assert len(published) == 1


def test_the_next_checkpoint_and_the_last_one_are_waited_for(saving):
    checkpoints, published = saving(policy=Model(writes_for=9))
    checkpoints.save(state(3), wait=False)
    checkpoints.save(state(4), wait=False)
    assert [step for step, _ in published] == [3]
    checkpoints.save(state(5), wait=True)
    assert [step for step, _ in published] == [3, 4, 5]


@pytest.mark.parametrize("full", ["save", "background"])
def test_a_full_disk_is_a_warning_and_the_checkpoint_before_is_kept(saving, tmp_path, caplog, full):
    saving(policy=Model())[0].save(state(1), wait=True)
    checkpoints, published = saving(policy=Model(full=full, writes_for=1))
    assert not checkpoints.save(state(2), wait=True)
    assert published == []
    assert not checkpoints.writing
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert caplog.messages == [
        "no room; training goes on, step-000001 is kept, and saving is tried again when the next checkpoint is due"
    ]


class Algorithm:
    def load_state(self, state):
        self.step = state["step"]


def test_models_and_algorithm_continue_from_a_checkpoint(saving, tmp_path):
    saving(policy=Model(b"saved"))[0].save(state(3), wait=True)
    policy, frozen, algorithm = Model(b"first"), Model(b"frozen", trainable=False), Algorithm()
    found = restore(tmp_path / "step-000003", {"policy": policy, "reference": frozen}, algorithm, name="own")
    assert (found, policy.value, frozen.value, algorithm.step) == (state(3), b"saved", b"frozen", 3)


def test_an_algorithm_that_does_not_know_its_state_is_named(saving, tmp_path):
    saving(policy=Model())[0].save(state(3), wait=True)

    class Other(Algorithm):
        def load_state(self, state):
            return state["coefficient"]

    with pytest.raises(RLError) as raised:
        restore(tmp_path / "step-000003", {"policy": Model()}, Other(), name="own")
    assert str(raised.value) == (
        f"algorithm 'own' cannot continue from its state in {tmp_path}/step-000003: KeyError: 'coefficient'\n"
        "    install the version that wrote it (plugins.json), or start a new run"
    )
