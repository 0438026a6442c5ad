"""Workers that are forked, and everything that makes them be started anew instead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from rl_core.cluster import forkserver as module
from rl_core.cluster.forkserver import forkserver, instead_of_python, serving
from rl_core.cluster.resources import Resources

PATIENCE_S = 120.0

PRINTS = """
import json, os, random, sys, numpy
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "arguments": sys.argv[1:], "directory": os.getcwd(),
    "environment": dict(os.environ), "niceness": os.getpriority(os.PRIO_PROCESS, 0), "preloaded": "wave" in sys.modules,
    "drawn": [random.random(), float(numpy.random.rand())],
}), flush=True)
for line in sys.stdin:
    if line == "exit\\n":
        sys.exit(0)
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Write a module that the server and its workers find."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, sys.path)]))

    def write(name, code=""):
        (folder / f"{name}.py").write_text(textwrap.dedent(code))
        return name

    return write


@pytest.fixture
def served(tmp_path, modules):
    """A server with modules, and what it wrote."""
    with ExitStack() as stack:

        def serve(*names):
            log = tmp_path / "logs" / "forkserver.log"
            return stack.enter_context(serving(names, threads=1, log=log)), log

        yield serve


@pytest.fixture
def worker(tmp_path):
    """Start a worker with the program that :func:`serving` gives, as Ray does; leftovers are killed."""
    folder = tmp_path / "ray"
    folder.mkdir()
    program = folder / "default_worker.py"
    program.write_text(PRINTS)
    started = []

    def start(python, *arguments, program=program, **options):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen([python, str(program), *arguments], text=True, **pipes, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def told(process):
    return json.loads(process.stdout.readline())


def gone(pid, within_s=PATIENCE_S):
    deadline = time.monotonic() + within_s
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    return True


def test_a_worker_is_a_fork_with_what_ray_gave_it(served, modules, worker, tmp_path):
    python, _ = served(modules("wave"))
    place = tmp_path / "elsewhere"
    place.mkdir()
    process = worker(python, "--node", "7", cwd=place, env=os.environ | {"OWN": "1"}, preexec_fn=lambda: os.nice(5))
    seen = told(process)
    assert seen["preloaded"]
    assert seen["arguments"] == ["--node", "7"]
    assert (seen["directory"], seen["environment"]["OWN"], seen["niceness"]) == (str(place), "1", os.nice(0) + 5)
    assert seen["pid"] != process.pid
    assert seen["parent"] == psutil.Process(seen["pid"]).ppid() != process.pid


def test_workers_draw_numbers_of_their_own(served, modules, worker):
    python, _ = served(modules("wave"))
    first, second = (told(worker(python))["drawn"] for _ in range(2))
    assert not set(first) & set(second)


def test_the_process_that_ray_started_lasts_as_long_as_the_worker(served, modules, worker):
    python, _ = served(modules("wave"))
    process = worker(python)
    told(process)
    assert process.poll() is None
    process.communicate("exit\n", timeout=PATIENCE_S)
    assert process.returncode == 0


def test_the_worker_ends_when_that_process_is_killed(served, modules, worker):
    python, _ = served(modules("wave"))
    process = worker(python)
    pid = told(process)["pid"]
    process.kill()
    assert gone(pid)


def test_that_process_ends_when_the_worker_is_killed(served, modules, worker):
    python, _ = served(modules("wave"))
    process = worker(python)
    os.kill(told(process)["pid"], signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0


def test_the_end_of_a_worker_s_process_group_is_no_other_s(served, modules, worker):
    python, _ = served(modules("wave"))
    first, second = worker(python), worker(python)
    server, pid = told(first)["parent"], told(second)["pid"]
    os.killpg(os.getpgid(pid), signal.SIGKILL)
    second.communicate(timeout=PATIENCE_S)
    first.communicate("exit\n", timeout=PATIENCE_S)
    assert first.returncode == 0
    assert told(worker(python))["parent"] == server


def test_a_worker_that_comes_early_waits_for_the_imports(served, modules, worker):
    python, _ = served(modules("wave", "import time; time.sleep(1)"))
    assert told(worker(python))["preloaded"]


def test_ray_s_helpers_are_the_interpreter(served, modules, worker, tmp_path):
    python, _ = served(modules("wave"))
    helper = tmp_path / "log_monitor.py"
    helper.write_text(PRINTS)
    process = worker(python, program=helper)
    seen = told(process)
    assert (seen["pid"], seen["preloaded"]) == (process.pid, False)


DECLINED = {
    "a thread": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "wave starts threads (1), which a forked process would not have",
    ),
    "Ray": (
        "import sys\nsys.modules['ray'] = sys",
        "wave imports Ray, which reads the settings of a worker when it is imported",
    ),
    "an error": ("1 / 0", "wave cannot be imported: ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("what", DECLINED)
def test_a_process_that_cannot_be_forked_is_not(what, served, modules, worker):
    code, reason = DECLINED[what]
    python, log = served(modules("wave", code))
    process = worker(python)
    seen = told(process)
    assert (seen["pid"], seen["preloaded"]) == (process.pid, False)
    assert log.read_text() == f"workers are not forked, but started anew: {reason}\n"


def test_modules_are_not_looked_for_in_the_working_directory(served, modules, worker, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "numpy.py").write_text("1 / 0")
    monkeypatch.chdir(folder)
    python, log = served(modules("wave"))
    assert told(worker(python, cwd=tmp_path))["preloaded"]
    assert log.read_text() == ""


def test_the_program_is_python_for_everything_else(served, modules, tmp_path):
    python, _ = served(modules("wave"))
    program = subprocess.run([python, "-c", "print(7)"], capture_output=True, text=True, check=True)
    typed = subprocess.run([python], input="print(7)", capture_output=True, text=True, check=True)
    assert (program.stdout, typed.stdout) == ("7\n", "7\n")


def test_a_server_that_is_gone_is_not_waited_for(served, modules, worker):
    python, _ = served(modules("wave"))
    server = told(worker(python))["parent"]
    os.kill(server, signal.SIGKILL)
    assert gone(server)
    process = worker(python)
    assert told(process)["pid"] == process.pid


def test_nothing_is_left_behind(modules, worker, tmp_path):
    with serving([modules("wave")], threads=1, log=tmp_path / "log") as python:
        process = worker(python)
        server = told(process)["parent"]
        process.communicate("exit\n", timeout=PATIENCE_S)
    assert gone(server)
    assert not Path(python).parent.exists()


@pytest.mark.parametrize("imports", ["", "import time; time.sleep(600)"])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_server_ends_with_its_driver_also_while_it_imports(at_once, imports, modules, tmp_path):
    importing = tmp_path / "importing"
    modules("wave", f"open({str(importing)!r}, 'w').close(); {imports}")
    driver = (
        "import sys, time; from pathlib import Path; from rl_core.cluster.forkserver import serving\n"
        "with serving(['wave'], threads=1, log=Path(sys.argv[1])) as python: print(python, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", driver, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    python = Path(process.stdout.readline().strip())
    assert python.exists()
    (server,) = psutil.Process(process.pid).children()
    while not at_once and not importing.exists():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert gone(server.pid)
    assert not python.parent.exists()


def test_a_temporary_folder_without_executables_is_no_obstacle(modules, tmp_path, monkeypatch):
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    with serving([modules("wave")], threads=1, log=tmp_path / "log") as python:
        assert python is None


def test_python_is_replaced_only_inside(tmp_path):
    real = sys.executable
    with instead_of_python("/other/python"):
        assert sys.executable == "/other/python"
    with instead_of_python(None):
        assert sys.executable == real
    assert sys.executable == real


LOCAL = Resources(ranks=1, replicas=1, gpus=0, nodes=1, threads=2, generator_threads=2)
REASONS = {
    "RL_FORK_WORKERS is 0": {"variables": {"RL_FORK_WORKERS": "0"}},
    "this is no Linux but darwin": {"platform": "darwin"},
    "Ray was there before": {"address": "10.0.0.1:6379"},
    "they use GPUs": {"resources": [replace(LOCAL, gpus=1)]},
    "they use different numbers of threads (1, 2)": {"resources": [LOCAL, replace(LOCAL, threads=1)]},
    "no component says what can be imported before (Component.preload)": {"preload": ()},
}


def against(monkeypatch, *, variables=(), platform="linux", address=None, resources=(LOCAL,), preload=("wave",)):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in dict(variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module.sys, "platform", platform)
    monkeypatch.setattr(module, "ray_needs", lambda config: SimpleNamespace(workers=resources))
    monkeypatch.setattr(module, "_ray_is_there", lambda: False)
    choice = SimpleNamespace(component=SimpleNamespace(preload=preload))
    stage = SimpleNamespace(run=SimpleNamespace(address=address), backend=choice, generator=None)
    return SimpleNamespace(stages=[stage])


@pytest.mark.parametrize("reason", REASONS)
def test_workers_are_started_anew_where(reason, monkeypatch, tmp_path, caplog):
    config = against(monkeypatch, **REASONS[reason])
    with caplog.at_level("INFO"), forkserver(config, tmp_path) as python:
        assert python is None
    assert caplog.messages == [f"workers are not forked, but started anew: {reason}"]


def test_a_local_run_forks_its_workers(monkeypatch, modules, worker, tmp_path):
    config = against(monkeypatch, preload=(modules("wave"),))
    with forkserver(config, tmp_path) as python:
        seen = told(worker(python))
    assert seen["preloaded"]
    assert (tmp_path / "forkserver.log").read_text() == ""
