import errno
import fcntl
import json
import os
import shutil
import stat

import pytest
from rl_core.errors import ConfigError, EnvironmentProblem, RLError, StorageError
from rl_core.training.directory import RunDirectory, read_status


def create(path):
    return RunDirectory.create(path, config_yaml="run: {}\n", manifest={"rl-core": "0.1.0"})


def test_a_run_directory_starts_with_config_and_plugin_versions(tmp_path):
    run = create(tmp_path / "r")
    assert (run.path / "config.yaml").read_text() == "run: {}\n"
    assert json.loads((run.path / "plugins.json").read_text()) == {"rl-core": "0.1.0"}
    run.status(status="running", step=3)
    assert read_status(run.path)["step"] == 3


def test_an_existing_run_directory_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError) as raised:
        create(tmp_path)
    assert str(raised.value) == (
        f"the run directory {tmp_path} already exists\n"
        f"    continue it:  rl resume {tmp_path}\n"
        "    or start another:  add run.name=NEW_NAME to the command"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unwritable_place_is_an_environment_problem(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem) as raised:
        create(tmp_path / "file" / "run")
    assert str(raised.value) == (
        f"cannot write the run directory {tmp_path}/file/run: Not a directory\n"
        "    choose another with run.directory=PATH"
    )


def test_two_processes_cannot_work_in_one_run_directory(tmp_path):
    first = create(tmp_path / "r")
    with pytest.raises(ConfigError) as raised:
        RunDirectory.open(tmp_path / "r")
    assert str(raised.value) == f"another process is running in {tmp_path}/r\n    see: rl runs {tmp_path}"
    first.close()
    RunDirectory.open(tmp_path / "r").close()


def test_steps_that_will_run_again_are_moved_not_lost(tmp_path):
    run = create(tmp_path / "r")
    rows = [{"stage": "sft", "step": 9}, {"stage": "grpo", "step": 1}, {"stage": "grpo", "step": 2}]
    run.metrics.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"stage": "grpo", "st')
    assert run.trim("grpo", 1) == 2
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == rows[:2]
    assert (run.path / "metrics.discarded.jsonl").read_text() == json.dumps(rows[2]) + '\n{"stage": "grpo", "st\n'


def test_a_folder_that_a_run_was_killed_in_before_it_began_is_taken(tmp_path):
    create(tmp_path / "r").close()
    (tmp_path / "r" / "config.yaml").unlink()
    run = create(tmp_path / "r")
    assert (run.path / "config.yaml").read_text() == "run: {}\n"


def test_a_replaced_config_keeps_the_one_before(tmp_path):
    run = create(tmp_path / "r")
    run.replace_config("run: {}\n")
    assert [p.name for p in run.path.glob("config*")] == ["config.yaml"]
    run.replace_config("run: {steps: 2}\n")
    assert (run.path / "config.yaml").read_text() == "run: {steps: 2}\n"
    (kept,) = run.path.glob("config.2*.yaml")
    assert kept.read_text() == "run: {}\n"


def test_the_last_logged_step_is_that_of_the_stage_and_torn_lines_do_not_count(tmp_path):
    run = create(tmp_path / "r")
    assert run.last_step("grpo") == 0
    rows = [{"stage": "sft", "step": 9}, {"stage": "grpo", "step": 1, "loss": 2.5}, {"stage": "grpo", "step": 2}]
    run.metrics.write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"stage": "grpo", "step": 3')
    assert run.last_step("grpo") == 2
    assert run.last_metrics("grpo") == {"step": 2, "loss": 2.5}


def test_a_disk_without_room_for_the_status_does_not_stop_a_run(tmp_path, caplog, monkeypatch):
    run = create(tmp_path / "r")

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    for step in (3, 4):
        run.status(status="running", step=step)
    assert caplog.messages == [f"cannot write {run.path}/status.json: No space left on device"]


def test_rows_stay_where_they_are_while_there_is_no_room_to_move_them(tmp_path, monkeypatch):
    run = create(tmp_path / "r")
    rows = "".join(f'{{"step": {step}, "stage": "train"}}\n' for step in (1, 2, 3))
    run.metrics.write_text(rows)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, "replace", full)
        with pytest.raises(StorageError) as caught:
            run.trim("train", 2)
    assert str(caught.value) == (
        f"the steps of stage 'train' after step 2 cannot be moved out of {run.metrics}: No space left on device\n"
        f"    make room, then continue with: rl resume {run.path}"
    )
    assert run.metrics.read_text() == rows
    assert run.trim("train", 2) == 1


def test_the_status_does_not_hold_secrets_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ACME_TOKEN", "abcdef123")
    run = create(tmp_path / "r")
    run.status(status="failed", error="refused abcdef123")
    assert read_status(run.path)["error"] == "refused ***"


def in_processes(number, job):
    """Run ``job(number)`` in forks that all begin at once; the exit code of each."""
    reading, writing = os.pipe()
    children = []
    for index in range(number):
        process = os.fork()
        if process == 0:
            os.close(writing)
            os.read(reading, 1)  # until every process is there
            code = 99
            try:
                code = job(index)
            finally:
                os._exit(code)
        children.append(process)
    os.close(reading)
    os.close(writing)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_of_processes_that_start_one_run_at_once_exactly_one_begins_it(tmp_path):
    for attempt in range(8):
        folder = tmp_path / f"run-{attempt}"

        def start(index, folder=folder):
            try:
                run = RunDirectory.create(folder, config_yaml=f"run: {index}\n", manifest={})
            except ConfigError:
                return 2
            run.close()  # and another one, which looked before this one began, must not take it now
            return 0

        codes = in_processes(4, start)
        assert sorted(codes) == [0, 2, 2, 2]
        assert (folder / "config.yaml").read_text() == f"run: {codes.index(0)}\n"


def test_a_run_that_another_process_began_and_ended_meanwhile_is_not_begun_again(tmp_path, monkeypatch):
    """Between the look at the folder and its lock."""
    flock = fcntl.flock

    def first_another(fd, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        assert in_processes(1, lambda _: create(tmp_path / "r").close() or 0) == [0]
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", first_another)
    with pytest.raises(ConfigError) as raised:
        RunDirectory.create(tmp_path / "r", config_yaml="run: {steps: 2}\n", manifest={})
    assert str(raised.value).startswith(f"the run directory {tmp_path}/r already exists\n")
    assert (tmp_path / "r" / "config.yaml").read_text() == "run: {}\n"


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_a_folder_that_goes_away_while_it_is_locked_is_made_anew(tmp_path, monkeypatch, how):
    flock = fcntl.flock

    def gone_before(fd, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / "r").rmdir() if how == "removed" else (tmp_path / "r").rename(tmp_path / "elsewhere")
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", gone_before)
    run = create(tmp_path / "r")
    run.require_intact()
    with pytest.raises(ConfigError, match="another process is running in"):
        RunDirectory.open(tmp_path / "r")


def test_of_processes_that_start_or_resume_one_run_at_once_each_finds_what_is_true(tmp_path):
    for attempt in range(5):
        folder = tmp_path / f"run-{attempt}"

        def claim(index, folder=folder):
            try:
                run = RunDirectory.claim(folder)
            except ConfigError as error:
                return 2 if "another process is running" in str(error) else 99
            if run.begun:
                return 1
            run.begin(config_yaml=f"run: {index}\n", manifest={})
            run.close()
            return 0

        assert in_processes(4, claim).count(0) == 1


def test_the_lock_holds_although_its_file_is_removed(tmp_path):
    run = create(tmp_path / "r")
    (run.path / ".lock").unlink()
    with pytest.raises(ConfigError, match="another process is running in"):
        RunDirectory.open(run.path)


def test_where_folders_cannot_be_locked_their_lock_file_is(tmp_path, monkeypatch):
    """As on NFS."""
    flock = fcntl.flock

    def files_only(fd, operation):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", files_only)
    create(tmp_path / "r")
    with pytest.raises(ConfigError, match="another process is running in"):
        RunDirectory.open(tmp_path / "r")


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def none(*_args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(EnvironmentProblem) as raised:
        create(tmp_path / "r")
    assert str(raised.value) == (
        f"{tmp_path}/r cannot be locked: Function not implemented; its file system has no flock\n"
        "    mount it with locks (Lustre: the option flock), or choose another place with run.directory=PATH"
    )


def disturbed(run, how):
    elsewhere = run.path.with_name("elsewhere")
    if how == "moved":
        run.path.rename(elsewhere)
    elif how == "removed":
        shutil.rmtree(run.path)
    elif how == "replaced":
        run.path.rename(elsewhere)
        shutil.copytree(elsewhere, run.path)
        shutil.rmtree(elsewhere)
    elif how == "emptied":
        for path in run.path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("how", "what", "advice"),
    [
        ("moved", "was moved to {}/elsewhere", "continue it there: rl resume {}/elsewhere"),
        ("removed", "was removed", "start the run again in a new directory"),
        ("replaced", "was replaced by another one", "start the run again in a new directory"),
        ("emptied", "was emptied", "start the run again in a new directory"),
    ],
)
def test_a_directory_that_is_not_in_its_place_any_more_is_noticed(tmp_path, how, what, advice):
    run = create(tmp_path / "r")
    run.require_intact()
    disturbed(run, how)
    with pytest.raises(RLError) as raised:
        run.require_intact()
    assert str(raised.value) == (
        f"the run directory {tmp_path}/r {what.format(tmp_path)} while the run was working in it\n"
        f"    {advice.format(tmp_path)}"
    )
    assert raised.value.exit_code == 1


def test_a_run_directory_may_be_reached_through_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "r").symlink_to(tmp_path / "disk")
    run = create(tmp_path / "r")
    run.require_intact()
    run.close()
    assert (tmp_path / "disk" / "config.yaml").is_file()
    RunDirectory.open(tmp_path / "r").close()


def test_the_status_of_a_directory_that_was_moved_is_written_where_it_is(tmp_path):
    run = create(tmp_path / "r")
    disturbed(run, "moved")
    (tmp_path / "r").mkdir()
    run.status(status="failed")
    assert read_status(tmp_path / "elsewhere")["status"] == "failed"
    assert list((tmp_path / "r").iterdir()) == []


def test_rows_with_line_separators_in_their_text_stay_whole(tmp_path):
    run = create(tmp_path / "r")
    rows = [{"stage": "grpo", "step": 1, "prompt": "a\u2028b\x85c"}, {"stage": "grpo", "step": 2}]
    run.path.joinpath("samples.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    run.trim("grpo", 1)
    assert json.loads((run.path / "samples.jsonl").read_text()) == rows[0]
    assert json.loads((run.path / "samples.discarded.jsonl").read_text()) == rows[1]


@pytest.mark.parametrize("name", ["status.json", "config.yaml", "plugins.json"])
def test_what_stands_where_a_file_is_written_is_not_written_into(tmp_path, name):
    """Neither a pipe, which nobody reads, nor a link to a file of somebody else."""
    run = create(tmp_path / "r")
    (tmp_path / "precious").write_text("mine")
    for make in (os.mkfifo, lambda path: path.symlink_to(tmp_path / "precious")):
        make(run.path / f"{name}.tmp")
        run.status(status="running")
        run.replace_config(f"run: {make}\n")
        (run.path / f"{name}.tmp").unlink(missing_ok=True)
    assert (tmp_path / "precious").read_text() == "mine"
