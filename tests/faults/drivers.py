"""`rl` in processes that are forked after every import, with the training worker inside: a run costs a second.

A program. It reads one JSON object a line, ``{"argv", "log", …}``, forks a process that runs ``rl argv``, and answers
with ``{"returncode", "counts"}``. Everything is the real thing except Ray: the worker's methods are called directly.

How a run is disturbed:

* ``kill``: ``{"during": "loop" | "saving" | "exporting" | "ending", "after": n, "signal": 9}`` sends the process the
  signal at the n-th function call (of Python or C) that happens from the training loop on, in it while a checkpoint is
  being written, while the model is exported, or between the last stage and the last status. ``shell`` instead of
  ``signal`` is a command line that is run at that moment.
* ``at_once``: other lists of arguments, each run in a process of its own at the same time; ``at_once`` of the answer
  has their answers.
* ``disk``: ``{"folder", "copy", …}`` mounts a :class:`small_disk.SmallDisk` at the folder, which is copied at the end.
* ``count``: count the calls instead; ``steps`` are those of the loop alone.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import rl_core.cli.main
import rl_core.training.pipeline
import torch
from rl_core.cluster.failures import ray_lost
from rl_core.cluster.pool import WorkerPool
from rl_core.cluster.worker import Worker
from rl_core.contracts.rendezvous import Rendezvous
from rl_core.training.checkpoint import CheckpointStore
from rl_core.training.directory import RunDirectory
from rl_core.training.export import export_model
from rl_core.training.loop import Loop
from rl_core.training.pipeline import Pipeline
from rl_ray.loss import RayLoss
from small_disk import SmallDisk

IMPORTED_HERE_TOO = ("ray", "rich", "rl_algo_sft_rm", "rl_backend_fsdp2", "rl_core", "rl_data_text", "transformers")
"""Packages of which this process imports what a run has needed, so that the forks after it find it loaded."""


class Direct:
    """A worker in this process that is called like an actor's handle."""

    def __init__(self, worker):
        self._worker = worker

    def __getattr__(self, method):
        return Method(getattr(self._worker, method))


class Method:
    def __init__(self, function):
        self._function = function

    def remote(self, *args):
        """What the coroutine returns; there is nothing in it that has to be waited for."""
        try:
            self._function(*args).send(None)
        except StopIteration as end:
            return end.value
        except Exception as error:
            return Failure(error)


class Failure:
    def __init__(self, error):
        self.error = error


class InThisThread:
    """Has the worker's calls counted as the driver's."""

    async def run(self, function):
        return function()


class DirectPool(WorkerPool):
    """A pool whose workers live in this process."""

    def prepare(self, resources):
        worker = Worker("train-0", self._manifest, None, 1)
        worker._thread = InThisThread()
        self.trainers = [Direct(worker)]

    def rendezvous_point(self, _actors, **_options):
        return Rendezvous("127.0.0.1", 0)

    def get(self, references, **_options):
        for found in references:
            if isinstance(found, Failure):
                raise found.error
        return list(references)

    def close(self):
        self.trainers = []


class Calls:
    """Counts function calls in the training loop and in the writing of checkpoints; strikes at a given one."""

    def __init__(self, kill):
        self._kill = kill or {}
        self._in_loop = self._saving = self._exporting = self._ending = False
        self.counts = {"loop": 0, "saving": 0, "saves": 0, "exporting": 0, "ending": 0}

    def __call__(self, frame, event, _argument):
        code = frame.f_code
        if event == "call" and code is Loop.run.__code__:
            self._in_loop = True
        if event == "call" and code is CheckpointStore.begin.__code__:
            self._saving = True
        if event == "return" and code is CheckpointStore.commit.__code__:
            self._saving = False
            self.counts["saves"] += 1
        if event == "return" and code is Loop.run.__code__:
            self.counts["steps"] = self.counts["loop"]
        if code is export_model.__code__ and event in ("call", "return"):
            self._exporting = event == "call"
        if event == "return" and code is Pipeline._run_stage.__code__:
            self._ending = True
        if event == "call" and code is RunDirectory.status.__code__:
            self._ending = False
        if event in ("call", "c_call"):
            for what, now in (("exporting", self._exporting), ("ending", self._ending)):
                if now:
                    self._one(what)
        if self._in_loop and event in ("call", "c_call"):
            self._one("loop")
            if self._saving:
                self._one("saving")

    def _one(self, what):
        self.counts[what] += 1
        if self._kill.get("during") == what and self.counts[what] == self._kill["after"]:
            if "shell" in self._kill:
                subprocess.run(self._kill["shell"], shell=True, check=True)
            else:
                os.kill(os.getpid(), self._kill["signal"])


class NoSession:
    """Does one thing that joining Ray does: it takes SIGTERM for itself."""

    loss = RayLoss(ray_lost)

    def join(self):
        signal.signal(signal.SIGTERM, lambda signum, _frame: sys.exit(signum))


@contextmanager
def no_session(_needs, _logs, on_loss):
    """There is no Ray."""
    yield NoSession()


def child(command, answer):
    """Never returns."""
    log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    rl_core.training.pipeline.WorkerPool = DirectPool
    rl_core.training.pipeline.ray_session = no_session
    disk = small_disk(answer, **command.get("disk", {}))
    calls = Calls(command.get("kill"))
    if command.get("kill") or command.get("count"):
        sys.setprofile(calls)
    returncode = rl_core.cli.main.main(command["argv"])
    sys.setprofile(None)
    if disk:
        shutil.copytree(command["disk"]["folder"], command["disk"]["copy"])
    sys.stdout.flush()
    sys.stderr.flush()
    modules = [name for name in sys.modules if name.partition(".")[0] in IMPORTED_HERE_TOO]
    seen = disk.seen if disk else {}
    os.write(answer, json.dumps({"counts": calls.counts, "modules": modules, "seen": seen}).encode())
    os._exit(returncode)


def small_disk(answer, *, folder=None, copy=None, **filled):
    """The disk that is asked for; without the means to mount one the process ends."""
    if folder is None:
        return None
    try:
        disk = SmallDisk(folder, **filled)
    except OSError as error:
        os.write(answer, json.dumps({"counts": None, "modules": [], "no_disk": str(error)}).encode())
        os._exit(0)
    disk.watch()
    return disk


def serve():
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        command = json.loads(line)
        others = [command | {"argv": argv, "log": f"{command['log']}.{n}"} for n, argv in enumerate(command["at_once"])]
        started = [start(one) for one in (command, *others)]
        answers = [end(*one) for one in started]
        # In the order in which the child did: some modules of transformers import each other in one order only.
        for name in dict.fromkeys(name for found in answers for name in found.pop("modules")):
            importlib.import_module(name)
        sys.stdout.write(json.dumps(answers[0] | {"at_once": answers[1:]}) + "\n")
        sys.stdout.flush()


def start(command):
    """A process that runs the command, and the end of the pipe that it answers into."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        child(command, writing)
    os.close(writing)
    return process, reading


def end(process, reading):
    with open(reading) as answer:
        found = json.loads(answer.read() or '{"counts": null, "modules": []}')
    return found | {"returncode": os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}


if __name__ == "__main__":
    serve()
