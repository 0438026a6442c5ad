import logging

import pytest
from rl_core.errors import RLError
from rl_core.run.checkpoint import CheckpointStore, RunState, damage, read_state


def state(step):
    return RunState(stage="train", step=step, position=step * 4, weights_version=step, algorithm={"beta": 0.5})


def write(content):
    def writer(folder):
        (folder / "policy").mkdir()
        (folder / "policy" / "weights.bin").write_bytes(content)

    return writer


def test_a_checkpoint_gives_back_what_was_saved(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=2)
    path = store.save(state(3), write(b"abc"))
    assert path.name == "step-000003"
    assert store.latest() == path
    assert read_state(path) == state(3)
    assert (path / "policy" / "weights.bin").read_bytes() == b"abc"


def test_only_the_last_few_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (1, 2, 3):
        store.save(state(step), write(b"x"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000003"]


def test_a_crash_while_saving_leaves_the_one_before(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    store.save(state(1), write(b"x"))

    def crash(folder):
        write(b"half")(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.save(state(2), crash)
    assert store.latest().name == "step-000001"
    assert store.save(state(2), write(b"y")).name == "step-000002"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001", "step-000002"]


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (
            lambda p: (p / "policy" / "weights.bin").write_bytes(b"abX"),
            "policy/weights.bin does not match its checksum",
        ),
        (lambda p: (p / "policy" / "weights.bin").write_bytes(b"ab"), "policy/weights.bin does not match its checksum"),
        (lambda p: (p / "state.json").unlink(), "state.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_reported_and_passed_over(tmp_path, caplog, harm, reason):
    store = CheckpointStore(tmp_path, keep_last=2)
    store.save(state(1), write(b"abc"))
    newest = store.save(state(2), write(b"abc"))
    harm(newest)
    assert damage(newest) == reason
    with caplog.at_level(logging.WARNING):
        assert store.latest().name == "step-000001"
    assert caplog.messages == [f"checkpoint {newest} is damaged ({reason}); trying the one before"]


def test_asking_for_a_step_that_is_not_there_lists_those_that_are(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    store.save(state(5), write(b"x"))
    with pytest.raises(RLError) as raised:
        store.at(4)
    assert str(raised.value) == f"there is no checkpoint of step 4 in {tmp_path} (steps there: 5)"
