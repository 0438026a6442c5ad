"""Warm workers of the test cluster are workers as Ray starts them, with their imports done."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from warm_workers import SWITCH, warm_python

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="forks"),
    pytest.mark.skipif(os.environ.get(SWITCH) == "0", reason=f"{SWITCH} is 0"),
]

PATIENCE_S = 120.0
PRINTS = """
import json, os, random, sys
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "arguments": sys.argv[1:], "directory": os.getcwd(),
    "environment": dict(os.environ), "niceness": os.getpriority(os.PRIO_PROCESS, 0), "warm": "numpy" in sys.modules,
    "drawn": [random.random(), float(sys.modules["numpy"].random.rand()) if "numpy" in sys.modules else 0.0],
}), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def python(tmp_path):
    with warm_python(tmp_path / "log", ["numpy"]) as python:
        yield python


@pytest.fixture
def worker(python, tmp_path):
    """Start a worker, or another of Ray's programs, as Ray does; leftovers are killed."""
    started = []

    def start(*arguments, program="default_worker.py", **options):
        path = tmp_path / program
        path.write_text(PRINTS)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([python, str(path), *arguments], **pipes, **options))
        return started[-1], json.loads(started[-1].stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.communicate()


def gone(pid):
    deadline = time.monotonic() + PATIENCE_S
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    return True


def test_a_worker_is_a_fork_with_what_ray_gave_it(worker, tmp_path):
    place = tmp_path / "elsewhere"
    place.mkdir()
    process, seen = worker("--node", "7", cwd=place, env=os.environ | {"OWN": "1"}, preexec_fn=lambda: os.nice(5))
    assert seen["warm"]
    assert seen["pid"] != process.pid != seen["parent"]
    assert (seen["arguments"], seen["directory"]) == (["--node", "7"], str(place))
    assert (seen["environment"]["OWN"], seen["niceness"]) == ("1", os.nice(0) + 5)
    assert not set(seen["drawn"]) & set(worker()[1]["drawn"])


def test_a_worker_and_the_process_that_ray_started_end_together(worker):
    (killed, first), (process, second), (ends, third) = worker(), worker(), worker()
    killed.kill()
    assert gone(first["pid"])
    os.killpg(os.getpgid(second["pid"]), signal.SIGKILL)  # as Ray does
    process.communicate(timeout=PATIENCE_S)
    assert ends.poll() is None
    ends.communicate("", timeout=PATIENCE_S)
    assert (ends.returncode, gone(third["pid"])) == (0, True)
    assert worker()[1]["parent"] == first["parent"]


def test_everything_else_is_the_interpreter(worker):
    helper, seen = worker(program="log_monitor.py")
    assert (seen["pid"], seen["warm"]) == (helper.pid, False)
    server = worker()[1]["parent"]
    os.kill(server, signal.SIGKILL)
    assert gone(server)
    process, seen = worker()
    assert (seen["pid"], seen["warm"]) == (process.pid, False)


@pytest.mark.slow
def test_ray_s_workers_have_imported_torch(cluster):
    import ray

    assert ray.get(ray.remote(num_cpus=1)(lambda: "rl_backend_fsdp2.backend" in sys.modules).remote())
