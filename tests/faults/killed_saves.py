"""Saves a checkpoint again and again, each time killed at the next call to the operating system.

A program: forks come from a process without threads. For every n it forks a process that saves step 2 over the
checkpoint given by the scenario and kills itself at the n-th call, then looks at what is there. It prints a JSON object
a line: ``{"n", "died", "latest", "content", "kept", "after"}``.

* scenario ``next``: step 1 is there and must go (``keep_last`` is 1) when step 2 is complete.
* scenario ``again``: steps 1 and 2 are there, and step 2 is replaced.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from rl_core.training.checkpoint import CheckpointStore, RunState, read_state

OPERATING_SYSTEM = ("posix", "io", "_io")


def state(step, data):
    return RunState(stage="train", step=step, position=step, weights_version=step, algorithm={"data": data})


def writer(data):
    def write(folder):
        (folder / "policy").mkdir()
        for part in range(2):
            with (folder / "policy" / f"part-{part}").open("wb") as file:
                file.write(data.encode() * 100)

    return write


def store(folder, keep_last):
    return CheckpointStore(folder, keep_last=keep_last)


class DeathAt:
    """Kills this process before its n-th call to the operating system, or right after the one before."""

    def __init__(self, n):
        self._left = n

    def __call__(self, _frame, event, function):
        if event != "c_call":
            return
        owner = getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__
        if owner not in OPERATING_SYSTEM:
            return
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_at(n, folder, keep_last):
    """Whether it died; False: the save took fewer calls."""
    process = os.fork()
    if process == 0:
        sys.setprofile(DeathAt(n))
        store(folder, keep_last).save(state(2, "new"), writer("new"))
        sys.setprofile(None)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def content(path):
    data = read_state(path).algorithm["data"]
    parts = {p.read_bytes() == data.encode() * 100 for p in (path / "policy").iterdir()}
    return data if parts == {True} else "mixed"


def main(scenario, root):
    before = root / "before"
    keep_last = 1 if scenario == "next" else 2
    store(before, keep_last).save(state(1, "old"), writer("old"))
    if scenario == "again":
        store(before, keep_last).save(state(2, "old"), writer("old"))
    for n in range(1, 1000):
        folder = root / f"at-{n}"
        shutil.copytree(before, folder)
        died = killed_at(n, folder, keep_last)
        latest = store(folder, keep_last).latest()
        found = {"n": n, "died": died, "latest": latest and latest.name, "content": latest and content(latest)}
        found["kept"] = sorted(p.name for p in folder.glob("step-*"))
        store(folder, keep_last).save(state(3, "newest"), writer("newest"))
        found["after"] = sorted(p.name for p in folder.iterdir())
        print(json.dumps(found), flush=True)
        shutil.rmtree(folder)
        if not died:
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
