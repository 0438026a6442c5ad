"""Components for workers that need neither torch nor long: they end, hang or run out of memory when told to."""

import asyncio
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Topology
from rl_core.contracts.generation import Completion
from rl_rollout.routing.results import Results

DIE, STOP, FULL, REFUSED = 900, 901, 902, 903
"""A prompt that starts with one of these ends, stops or fills its generator; once, where there is a marker file."""


class Options(dict):
    """A config that brings the folder of this module along: workers do not have it on their path."""

    def __reduce__(self):
        here = str(Path(__file__).parent)
        return eval, (f"__import__('sys').path.append({here!r}) or {dict(self)!r}",)


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


class Rank:
    """A backend's rank as far as a worker is concerned."""

    def __init__(self, config):
        self.config = config
        self._counted = 0
        self._updated = threading.Event()

    def setup(self, context):
        self.rank = context.rank
        self._set_up_in = self.thread()
        return Topology(context.rank, context.world_size)

    def thread(self):
        return threading.current_thread().name

    def thread_of_setup(self):
        return self._set_up_in

    def wait(self, seconds):
        time.sleep(seconds)
        return "done"

    def count(self):
        self._counted += 1
        return self._counted

    def count_slowly(self):
        before = self._counted
        time.sleep(0.001)
        self._counted = before + 1
        return self._counted

    def sample_until_updated(self):
        return "done" if self._updated.wait(30) else "late"

    def update(self, buckets):
        self._updated.set()
        return "updated"

    def leave(self):
        sys.exit(3)

    def stop_iteration(self):
        next(iter(()))

    def cancel(self):
        raise futures.CancelledError("the engine is gone")

    def end_or_wait(self, rank, seconds):
        if self.rank == rank:
            os._exit(3)
        return self.wait(seconds)

    def echo_or_end(self, rank):
        """Like two ranks in an exchange: one ends, the other's call fails because of that."""
        time.sleep(0.3)
        if self.rank == rank:
            os._exit(3)
        raise RuntimeError("Connection closed by peer")

    def crash(self):
        signal.raise_signal(signal.SIGSEGV)  # to this thread, as one that reads where it may not
        time.sleep(60)

    def deadlock(self):
        """Wait for ever in C without giving up Python's lock."""
        time.sleep(3)
        mutex = ctypes.create_string_buffer(128)
        for _ in range(2):
            ctypes.PyDLL(None).pthread_mutex_lock(mutex)

    def hold_the_lock(self, seconds):
        """Stay in C for that long without giving up Python's lock, as a library that loads may."""
        time.sleep(2)
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))
        return "done"

    def fill(self):
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def tell(self, text):
        logging.getLogger("a.library").warning("%s", text)
        print(text)

    def break_down(self):
        return {}["missing"]

    def close(self):
        pass


class AsyncComponent:
    """One whose methods are coroutines."""

    closings = 0

    def __init__(self, config):
        self._released = asyncio.Event()
        self._counted = 0

    async def setup(self, context):
        return Topology(context.rank, context.world_size)

    async def wait_for_release(self):
        await self._released.wait()
        return "done"

    async def release(self):
        self._released.set()
        return "released"

    async def count(self):
        self._counted += 1
        return self._counted

    async def break_down(self):
        return {}["missing"]

    async def leave(self):
        sys.exit(3)

    async def stop_iteration(self):
        next(iter(()))

    async def cancel(self):
        task = asyncio.ensure_future(asyncio.sleep(100))
        task.cancel("the engine is gone")
        await task

    async def closed(self):
        return type(self).closings

    async def close(self):
        type(self).closings += 1


class Generator:
    """Completes a prompt with its process id and ``prompt's first token + weights version``, n times.

    ``config``: ``delay_s`` per token, ``marker``, a file without which a dangerous prompt acts, or None for always,
    and ``broken``, a file with which it cannot be loaded.
    """

    def __init__(self, config):
        self.config = config
        self.version = -1

    def setup(self, context):
        pass

    def load(self, model, tokenizer_path):
        if self.config["broken"] and Path(self.config["broken"]).exists():
            raise RuntimeError("the weights file is gone")

    def update_weights(self, buckets, version):
        assert [int(b) for b in buckets] == [7]
        self.version = version

    def generate(self, requests, sampling):
        self._face_danger(requests)
        time.sleep(self.config["delay_s"] * sampling.max_new_tokens)
        prompts = [requests.tokens[requests.sequence(i)] for i in range(len(requests)) for _ in range(sampling.n)]
        count = [len(p) + 2 for p in prompts]
        return SequenceBatch.from_lists(
            [np.concatenate([p, [os.getpid(), p[0] + self.version]]).astype(np.int32) for p in prompts],
            token_columns={
                "sampled_logprobs": [np.zeros(c, np.float32) for c in count],
                "weights_version": [np.full(c, self.version, np.int32) for c in count],
            },
            sequence_columns={
                "request": np.repeat(np.arange(len(requests)), sampling.n),
                "sample": np.tile(np.arange(sampling.n), len(requests)),
                "prompt_length": np.array([len(p) for p in prompts]),
                "truncated": np.ones(len(prompts), bool),
            },
        )

    def _face_danger(self, requests):
        first = set(requests.tokens[requests.offsets[:-1]].tolist())
        marker = self.config["marker"]
        if not first & {DIE, STOP, FULL}:
            return
        if marker:
            try:
                Path(marker).touch(exist_ok=False)
            except FileExistsError:
                return
        if DIE in first:
            os._exit(3)
        if FULL in first:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        os.kill(os.getpid(), signal.SIGSTOP)

    def close(self):
        pass


class StreamingGenerator(Generator):
    """The same as single requests, each after ``delay_s`` for each of its tokens; a prompt that begins with ``REFUSED``
    is an error of the engine."""

    wants = frozenset()

    def __init__(self, config):
        super().__init__(config)
        self._timers = {}
        self._lock = threading.Lock()
        self._going = threading.Event()
        self._going.set()

    def submit(self, requests):
        results = Results(len(requests))
        for request in requests:
            wait_s = self.config["delay_s"] * request.sampling.max_new_tokens
            timer = threading.Timer(wait_s, self._answer, (request, results, "length"))
            timer.daemon = True
            self._timers[request.id] = (timer, request, results)
            timer.start()
        return results

    def abort(self, ids=None):
        for id in list(self._timers) if ids is None else ids:
            timer, request, results = self._timers.get(id, (None, None, None))
            if timer is not None:
                timer.cancel()
                self._answer(request, results, "abort")

    def pause(self):
        self._going.clear()

    def resume(self):
        self._going.set()

    def _answer(self, request, results, finish):
        self._going.wait()
        with self._lock:
            if self._timers.pop(request.id, None) is None:
                return
        first = int(request.tokens[0])
        if first == REFUSED:
            results.fail(ValueError("the engine does not like it"))
            return
        self._face_danger(SequenceBatch.from_lists([request.tokens]))
        tokens = np.array([os.getpid(), first + self.version], np.int32)[: 0 if finish == "abort" else None]
        versions = np.full(len(tokens), self.version, np.int32)
        results.deliver([Completion(request.id, tokens, np.zeros(len(tokens), np.float32), versions, finish)])
