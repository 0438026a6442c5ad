"""A module of the user's, whose code runs in processes of its own."""

import sys
import time
from pathlib import Path

import pytest
from rl_isolation.worker import Limits, Service

MODULE = '''
import logging, os, pathlib, signal, subprocess, sys, time

def doubler():
    return lambda task: 2 * task

class Obeys:
    """Does what the task says."""

    def __init__(self, folder="."):
        self.folder = pathlib.Path(folder)

    def __call__(self, task):
        name, *arguments = task
        return getattr(self, name)(*arguments)

    def echo(self, value): return value
    def pid(self): return os.getpid()
    def sleep(self, seconds): time.sleep(seconds)
    def spin(self):
        while True: pass
    def leave(self, code): os._exit(code)
    def fail(self): raise KeyError("gold")
    def write(self, text): sys.stdout.write(text); sys.stdout.flush(); os.write(2, b"to stderr\\n")
    def program(self): subprocess.run(["echo", "by a program"])
    def log(self): logging.getLogger("mood").warning("a %s mood", "bad")
    def eat(self): return len(bytearray(8 << 30))
    def no_json(self): return {1, 2}
    def long(self): return "x" * (9 << 20)
    def nan(self): return float("nan")
    def lies(self):
        class Lies(Exception):
            def __str__(self): raise ValueError("no")
        raise Lies
    def much_text(self): raise KeyError("x" * 10**8)
    def forks(self):
        pid = os.fork()
        if pid: os.waitpid(pid, 0)
        return "once"
    def hides(self):
        """A daemon in a session of its own, and a program."""
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                (self.folder / "new").write_text(str(os.getpid()))
                (self.folder / "new").rename(self.folder / "daemon")
                time.sleep(600)
            os._exit(0)
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        while not (self.folder / "daemon").exists(): time.sleep(0.01)
        return [child.pid, int((self.folder / "daemon").read_text())]
    def meet(self):
        """Returns once another process is in here as well."""
        (self.folder / f"here-{os.getpid()}").touch()
        while len(list(self.folder.glob("here-*"))) < 2: time.sleep(0.01)
        return True
    def close(self): (self.folder / "closed").write_text("by the process")
'''


@pytest.fixture(scope="session")
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("isolated")
    (folder / "isolated_code.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def service(module, tmp_path):
    def make(**limits):
        return Service("isolated_code:Obeys", (str(tmp_path),), "the code", limits=Limits(**limits))

    return make


@pytest.fixture
def ends():
    def wait(pid, within_s=30.0):
        deadline = time.monotonic() + within_s
        while _runs(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        return not _runs(pid)

    return wait


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
