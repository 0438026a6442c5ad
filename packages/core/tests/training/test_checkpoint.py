import logging
import os
import shutil
from dataclasses import replace

import pytest
from rl_core.errors import RLError, StorageError
from rl_core.training.checkpoint import CheckpointStore, RunState, damage, read_state
from rl_core.training.retention import Best


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

    with pytest.raises(StorageError) as raised:
        store.save(state(2), crash)
    assert str(raised.value) == "the checkpoint of step 2 cannot be written: disk full"
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
        (lambda p: (p / "policy" / "weights.bin").write_bytes(b"ab"), "policy/weights.bin has 2 bytes instead of 3"),
        (lambda p: (p / "policy" / "more.bin").write_bytes(b"ab"), "policy/more.bin is not in manifest.json"),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json: No such file or directory"),
        (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json is damaged: it is no JSON object"),
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


def test_a_damaged_checkpoint_that_is_asked_for_is_refused_with_the_others(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    store.save(state(5), write(b"x"))
    path = store.save(state(6), write(b"x"))
    (path / "policy" / "weights.bin").write_bytes(b"y")
    with pytest.raises(RLError) as raised:
        store.at(6)
    assert str(raised.value) == (
        f"checkpoint {path} is damaged: policy/weights.bin does not match its checksum\n"
        "    choose another step with --step (5, 6)"
    )


def test_when_every_checkpoint_is_damaged_nothing_starts_over_by_itself(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (1, 2):
        (store.save(state(step), write(b"x")) / "policy" / "weights.bin").unlink()
    with pytest.raises(RLError) as raised:
        store.latest()
    assert str(raised.value) == (
        f"every checkpoint in {tmp_path} is damaged\n"
        "    step-000002: policy/weights.bin is missing\n"
        "    step-000001: policy/weights.bin is missing\n"
        "    restore one from a copy, or move the folder away and train this stage again with --allow restart"
    )


def test_a_checkpoint_that_was_never_finished_is_reported(tmp_path, caplog):
    CheckpointStore(tmp_path).begin(state(1), write(b"x"))
    (left,) = tmp_path.iterdir()
    with caplog.at_level(logging.WARNING):
        assert CheckpointStore(tmp_path).latest() is None
    assert caplog.messages == [f"checkpoint {left} is not complete: the run ended while it was written; passed over"]


def test_a_replacement_that_was_cut_off_between_its_renames_is_undone(tmp_path):
    path = CheckpointStore(tmp_path).save(state(4), write(b"x"))
    path.rename(tmp_path / ".old-step-000004-1a2b3c4d")
    assert CheckpointStore(tmp_path).latest() == path


def test_the_best_and_every_nth_checkpoint_stay(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1, keep_every=4, keep_best=Best("eval/loss", "min"))
    for step, loss in enumerate((5.0, 3.0, 4.0, 4.5, float("nan"), 9.0), start=1):
        store.save(replace(state(step), metrics={"eval/loss": loss}), write(b"x"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000004", "step-000006"]


def test_a_checkpoint_without_the_metric_of_keep_best_is_a_warning_once(tmp_path, caplog):
    store = CheckpointStore(tmp_path, keep_last=1, keep_best=Best("eval/loss", "min"))
    for step in (1, 2):
        store.save(replace(state(step), metrics={"train/loss": 1.0}), write(b"x"))
    assert caplog.messages == [
        "run.keep_best: step-000001 has no metric eval/loss, so it cannot be among the best; "
        "evaluate at the steps that are saved"
    ]


def test_a_checkpoint_that_somebody_reads_is_removed_later(tmp_path):
    run = CheckpointStore(tmp_path, keep_last=1)
    run.save(state(1), write(b"one"))
    with CheckpointStore(tmp_path, owner=False).reading() as path:
        for step in (2, 3):
            run.save(state(step), write(b"x"))
        assert damage(path) is None
        assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001", "step-000003"]
    run.save(state(4), write(b"x"))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000004"]


def test_a_reader_beside_a_run_finds_a_whole_checkpoint_whenever_it_looks(tmp_path):
    """In processes: checkpoints come and go as fast as they can, and none is ever taken for a damaged one."""
    run = CheckpointStore(tmp_path, keep_last=1)
    run.save(state(1), write(b"x"))
    writer = os.fork()
    if writer == 0:
        try:
            for step in range(2, 80):
                run.save(state(step), write(b"x"))
        finally:
            os._exit(0)
    seen = set()
    while os.waitpid(writer, os.WNOHANG) == (0, 0):
        with CheckpointStore(tmp_path, owner=False).reading() as path:
            seen.add(read_state(path).step)
            assert damage(path) is None
    assert len(seen) > 1


def test_a_reader_leaves_what_a_run_is_replacing(tmp_path):
    path = CheckpointStore(tmp_path).save(state(4), write(b"x"))
    path.rename(tmp_path / ".old-step-000004-1a2b3c4d")
    assert CheckpointStore(tmp_path, owner=False).latest() is None
    assert [p.name for p in tmp_path.iterdir()] == [".old-step-000004-1a2b3c4d"]


def test_an_emptied_folder_of_a_stage_that_saved_is_known(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", record=tmp_path / "saved.json")
    assert store.lost() is None
    store.save(state(3), write(b"x"))
    assert store.lost() is None
    shutil.rmtree(store.folder)
    assert store.lost() == 3
    store.forget()
    assert store.lost() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": "3"}'])
def test_a_damaged_record_of_what_was_saved_is_named(tmp_path, text):
    (tmp_path / "saved.json").write_text(text)
    with pytest.raises(RLError, match=r"saved\.json is damaged: "):
        CheckpointStore(tmp_path / "checkpoints", record=tmp_path / "saved.json").lost()


def test_nothing_is_written_where_the_run_directory_is_gone(tmp_path):
    gone = []

    def guard():
        if gone:
            raise RLError("it was moved")

    store = CheckpointStore(tmp_path / "checkpoints", guard=guard)
    store.save(state(1), write(b"x"))
    store.begin(state(2), write(b"x"))
    gone.append(True)
    for action in (lambda: store.commit(2), lambda: store.begin(state(3), write(b"x"))):
        with pytest.raises(RLError, match="it was moved"):
            action()
    assert store.newest_name() == "step-000001"
