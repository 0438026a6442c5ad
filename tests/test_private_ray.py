"""Who reaches the Ray that a run starts for itself: its user, from this machine, and nobody after the run's end."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from sockets import exposed, listening, tree
from support import RL, environment

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

PATIENCE_S = 180
NOBODY = 65534
JOINS = """
import os, sys
address, how = sys.argv[1:]
for name in list(os.environ):
    if name.startswith("RAY_"):
        del os.environ[name]
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled" if how == "without" else "token"
if how != "without":
    os.environ["RAY_AUTH_TOKEN"] = how
import ray
ray.init(address=address, log_to_driver=False)
print("JOINED", ray.get(ray.remote(num_cpus=0)(lambda: os.getuid()).remote(), timeout=60))
"""


class Run:
    """A run with a Ray of its own, in its first step until it is told to go on."""

    def __init__(self, tiny_sft, folder, *options, address=""):
        self.temporary, self.directory = folder / "tmp", folder / "run"
        self.temporary.mkdir()
        os.chmod(self.temporary, 0o1777)
        self.process = subprocess.Popen(
            [RL, "run", tiny_sft, "run.steps=1000000", "run.checkpoint_every=20", *options],
            env=environment(address) | {"RAY_TMPDIR": str(self.temporary)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def trains(self):
        deadline = time.monotonic() + PATIENCE_S
        while not list((self.directory / "checkpoints").glob("step-*")):
            assert self.process.poll() is None, (self.directory / "logs" / "rl.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return self

    @property
    def folder(self):
        (found,) = self.temporary.glob("rl-ray-*")
        return found

    @property
    def address(self):
        return (self.folder / "r1" / "ray_current_cluster").read_text().strip()

    @property
    def pids(self):
        return tree(self.process.pid)


@pytest.fixture(scope="module")
def short():
    """A folder with a short name for sockets that other users can enter, as a machine's /tmp."""
    folder = Path(f"/tmp/rl-test-{os.getpid()}")
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def start(tiny_sft, tmp_path, short):
    runs = []

    def start(*options, address=""):
        folder = short / str(len(list(short.iterdir())))
        folder.mkdir()
        runs.append(Run(tiny_sft, folder, f"run.directory={folder / 'run'}", *options, address=address))
        return runs[-1].trains()

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait()


def alive(pids):
    return [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]


def wait_until_gone(pids, within_s):
    deadline = time.monotonic() + within_s
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    return alive(pids)


def as_nobody(*command, **options):
    return subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def test_everything_listens_on_loopback_only_and_nothing_is_left_when_the_driver_is_killed(start):
    run = start()
    pids = run.pids
    names = {Path(part).name for pid in pids for part in psutil.Process(pid).cmdline()[:1]}
    assert {"gcs_server", "raylet"} <= names
    assert {s.pid for s in listening(pids)} & {run.process.pid}  # the driver listens too
    assert exposed(pids) == []

    run.process.kill()
    run.process.wait()
    killed = time.monotonic()
    assert wait_until_gone(pids, 20) == []
    sys.stdout.write(f"all were gone after {time.monotonic() - killed:.1f} s\n")  # less than 5 on a quiet machine
    left = run.folder
    subprocess.run(
        [sys.executable, "-c", "from rl_ray.folder import RayFolder; RayFolder().remove()"],
        env=os.environ | {"RAY_TMPDIR": str(run.temporary)},
        check=True,
    )
    assert not left.exists()


def test_no_other_user_gets_in_and_at_the_end_the_logs_stay_and_the_folder_goes(start, tmp_path):
    run = start()
    if os.getuid() == 0 and shutil.which("setpriv"):
        for path in (run.folder, run.folder / "token", run.folder / "r1" / "session_latest" / "logs"):
            assert "Permission denied" in as_nobody("ls", str(path)).stderr
    # The tests' interpreter may be closed to other users, so the one who has not the token runs as this one.
    tokens = ("without", "0" * 64, (run.folder / "token").read_text())
    joining = [
        subprocess.Popen(
            [sys.executable, "-c", JOINS, run.address, token],
            env=os.environ | {"RAY_TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for token in tokens
    ]
    *refused, allowed = [(process.communicate(timeout=120), process.returncode) for process in joining]
    for (stdout, stderr), code in refused:
        assert code != 0
        assert "JOINED" not in stdout
        assert "auth" in stderr.lower(), stderr
    assert f"JOINED {os.getuid()}" in allowed[0][0], allowed[0][1]

    assert (run.directory / "logs" / "ray").is_symlink()
    pids = run.pids
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(120) == 143
    assert wait_until_gone(pids, 30) == []
    assert list(run.temporary.iterdir()) == []
    kept = run.directory / "logs" / "ray"
    assert kept.is_dir()
    assert not kept.is_symlink()
    assert (kept / "gcs_server.out").stat().st_size > 0


def rl(*arguments, env):
    return subprocess.run([RL, *arguments], env=env, capture_output=True, text=True, timeout=PATIENCE_S)


def test_a_local_cluster_is_started_once_joined_by_runs_and_stopped(short, start, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    env = environment("") | {"RAY_TMPDIR": str(short)}
    with ThreadPoolExecutor() as pool:  # both at the same moment
        both = list(pool.map(lambda _: rl("cluster", "start", "--cpus", "2", env=env), range(2)))
    started, again = sorted(both, key=lambda ended: ended.returncode)
    try:
        assert started.returncode == 0, started.stderr
        assert "rl run CONFIG run.address=cluster" in started.stdout
        record = json.loads((tmp_path / "state" / "rl" / f"cluster-{socket.gethostname()}.json").read_text())
        folder = Path(record["folder"])
        for place, mode in ((tmp_path / "state" / "rl", 0o700), (folder, 0o700), (folder / "token", 0o600)):
            assert place.stat().st_mode & 0o777 == mode
        assert again.returncode == 2
        assert f"error: a local cluster runs already, at {record['address']}\n" in again.stderr

        run = start(address="cluster")
        pids = tree(record["pid"])
        assert exposed([*pids, *run.pids]) == []
        status = rl("cluster", "status", env=env).stdout
        assert re.search(r"^nodes +1\nresources +1 of 2 CPU free$", status, re.MULTILINE), status
        assert {"gcs_server", "raylet"} <= set(re.findall(r"^process +\d+  (\S+)", status, re.MULTILINE))

        # Its daemon dies under a run that did not start it: the run ends, and says how to go on.
        gcs = next(pid for pid in pids if "gcs_server" in psutil.Process(pid).name())
        os.kill(gcs, signal.SIGKILL)
        assert run.process.wait(120) == 1
        told = json.loads((run.directory / "status.json").read_text())
        assert told["status"] == "failed"
        assert f"gcs_server (pid {gcs}) has ended" in told["error"]
    finally:
        stopped = rl("cluster", "stop", env=env)
    assert stopped.stdout == "no local cluster runs\n"  # its head is gone; what was left is, too
    assert wait_until_gone(pids, 30) == []
    assert not folder.exists()


SCRIPT = """
import sys
{before}
from rl_core.training.api import run
for name in {names}:
    assert run(sys.argv[1], ["run.directory=" + sys.argv[2] + "/" + name]) == 0
{after}
"""
# With the settings of a private Ray this process would take 127.0.0.1 for its address in every other cluster.
JOINS_ANOTHER = """
from rl_core.errors import EnvironmentProblem
try:
    run(sys.argv[1], ["run.directory=" + sys.argv[2] + "/third", "run.address=10.0.0.1:6379"])
except EnvironmentProblem as problem:
    print(problem)
"""


def run_script(tiny_sft, folder, *names, before="", after=""):
    code = SCRIPT.format(before=before, names=list(names), after=after)
    env = environment("") | {"RAY_TMPDIR": str(folder)}
    command = [sys.executable, "-c", code, tiny_sft, folder]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S)


@pytest.mark.nightly
def test_a_process_can_have_one_private_ray_after_the_other(tiny_sft, tmp_path):
    done = run_script(tiny_sft, tmp_path, "first", "second", after=JOINS_ANOTHER)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("rl-ray-*")) == []
    assert "listens on every network interface" not in done.stderr
    assert "cannot join '10.0.0.1:6379'\n    start another process for it" in done.stdout


@pytest.mark.nightly
def test_where_ray_was_imported_before_it_is_started_as_it_is_and_the_run_says_so(tiny_sft, tmp_path):
    done = run_script(tiny_sft, tmp_path, "one", before="import ray")
    assert done.returncode == 0, done.stderr
    assert "so it listens on every network interface of this machine, protected by its token alone" in done.stderr
    assert list(tmp_path.glob("rl-ray-*")) == []
    assert (tmp_path / "one" / "logs" / "ray" / "gcs_server.out").is_file()
