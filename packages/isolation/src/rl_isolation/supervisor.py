"""The process between the driver and the user's code: ``python -m rl_isolation.supervisor SOCKET TASKS LIMITS``.

It forks the child, hands it tasks, keeps their deadlines, and alone holds the socket to the driver and, while a task is
in progress, the nonce that its answer has to bring. It ends with its child and with its driver, and takes every process
with it that the child has started, also those that hid in a session of their own. Only the standard library.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from rl_isolation import process_tree
from rl_isolation.protocol import (
    ANSWER,
    BUFFER_BYTES,
    CHECK,
    CLOSE_S,
    CONTROL_BYTES,
    DEADLINE,
    DUMP_SIGNAL,
    ENDED,
    LOG,
    NONCE_BYTES,
    OUTPUT,
    STARTED,
    TASK,
    FrameReader,
    ProtocolError,
    SendBuffer,
    file_in_memory,
)

_SEND_S = 5.0
_STACKS_S = 1.0
_STACKS_BYTES = 1 << 16


def main() -> None:
    """Fork the child and serve until it, or the driver, ends."""
    driver, tasks, limits = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), json.loads(sys.argv[3])
    process_tree.adopt_orphans()
    process_tree.hide_memory(True)
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    stacks = file_in_memory()
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        for end in (driver, ours):
            end.close()
        os.close(read)
        from rl_isolation import child

        child.run(theirs, tasks=tasks, output=write, stacks=stacks, supervisor=supervisor, limits=limits)
        return
    theirs.close()
    os.close(write)
    os.close(tasks)
    _Supervisor(driver, ours, pid=pid, output=read, stacks=stacks, limits=limits).serve()


class _ChildEnded(Exception):
    """The child ended; the message says how."""


class _Supervisor:
    def __init__(
        self, driver: socket.socket, child: socket.socket, *, pid: int, output: int, stacks: int, limits: dict[str, Any]
    ) -> None:
        self._driver, self._child, self._pid = driver, child, pid
        self._output, self._stacks = output, stacks
        self._to_driver, self._to_child = SendBuffer(driver), SendBuffer(child)
        self._tasks = FrameReader({TASK: CONTROL_BYTES})
        self._answers = FrameReader({ANSWER: limits["answer_bytes"], CHECK: NONCE_BYTES, LOG: CONTROL_BYTES})
        self._output_bytes = self._room = limits["output_bytes"]
        self._dropped = 0
        self._nonce = b""
        self._deadline: float | None = None
        self._answer: bytes | None = None
        self._challenge = b""
        self._sources: dict[int, tuple[Callable[[], Any], SendBuffer | None]] = {}
        self._closing = self._child_closed = False

    def serve(self) -> None:
        """Until the child or the driver ends."""
        for channel in (self._driver, self._child):
            channel.setblocking(False)
        os.set_blocking(self._output, False)
        wake, woken = os.pipe()
        for end in (wake, woken):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._sources = {
            self._driver.fileno(): (self._read_driver, self._to_driver),
            self._child.fileno(): (self._read_child, self._to_child),
            self._output: (self._forward_output, None),
            wake: (lambda: os.read(wake, BUFFER_BYTES), None),
        }
        self._send(self._to_driver, STARTED, str(self._pid).encode())
        try:
            while True:
                self._check_child()
                self._wait()
        except _ChildEnded as ended:
            self._end(str(ended))
        except ProtocolError as broken:
            self._end(str(broken), broke=True)
        except OSError:  # the driver is gone
            process_tree.end_descendants()

    def _wait(self) -> None:
        """Until something can be read or written, or the time is over."""
        poll = select.poll()
        for descriptor, (_, buffer) in self._sources.items():
            poll.register(descriptor, select.POLLIN | (select.POLLOUT if buffer else 0))
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic()) * 1e3 + 1
        for descriptor, events in poll.poll(left):
            read, buffer = self._sources[descriptor]
            if events & select.POLLOUT and buffer is not None:
                self._send(buffer)
            if events & ~select.POLLOUT:
                read()

    def _send(self, buffer: SendBuffer, kind: int | None = None, *body: bytes) -> None:
        """Write a frame, or without ``kind`` what is still to be written."""
        try:
            if kind is None:
                buffer.flush()
            else:
                buffer.put(kind, *body)
        except OSError:
            if buffer is self._to_driver and not self._closing:
                raise
            buffer.clear()  # the child ended, or its code closed all descriptors, which shows where it is heard

    def _check_child(self) -> None:
        """Notice its end, and the end of its time."""
        status = process_tree.reap().get(self._pid)
        if status is not None:
            raise _ChildEnded(process_tree.how_it_ended(os.waitstatus_to_exitcode(status)))
        if self._deadline is not None and time.monotonic() >= self._deadline:
            if self._child_closed:
                raise ProtocolError("it closed the connection")
            self._end("late", late=True)

    def _read_driver(self) -> None:
        data = self._driver.recv(BUFFER_BYTES)
        if not data:
            if self._nonce:
                raise OSError("the driver no longer waits for the answer")
            del self._sources[self._driver.fileno()]
            self._child.shutdown(socket.SHUT_WR)  # which asks it to close
            self._closing, self._deadline = True, time.monotonic() + CLOSE_S
            return
        self._tasks.feed(data)
        while (frame := self._tasks.next()) is not None:
            body = frame[1]
            if self._nonce:
                raise OSError("two tasks at once")
            self._check_child()  # which may have ended before it gets the task
            (seconds,) = DEADLINE.unpack_from(body, NONCE_BYTES)
            self._nonce, self._deadline = body[:NONCE_BYTES], time.monotonic() + seconds
            self._room = self._output_bytes
            self._send(self._to_child, TASK, body[NONCE_BYTES + DEADLINE.size :])

    def _read_child(self) -> None:
        try:
            data = self._child.recv(BUFFER_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:  # it ends, or its code has closed all descriptors
            del self._sources[self._child.fileno()]
            self._child_closed, self._deadline = True, time.monotonic() + _STACKS_S
            return
        self._answers.feed(data)
        while (frame := self._answers.next()) is not None:
            self._take(*frame)

    def _take(self, kind: int, body: bytes) -> None:
        """One frame of the child: an answer counts once a question about it was answered from the same place."""
        if kind == LOG:
            self._forward(LOG, body)
        elif kind == ANSWER and self._nonce and self._answer is None:
            self._answer, self._challenge = body, os.urandom(NONCE_BYTES)
            self._send(self._to_child, CHECK, self._challenge)
        elif kind == CHECK and self._answer is not None and body == self._challenge:
            self._forward_output()
            self._report_dropped()
            self._send(self._to_driver, ANSWER, self._nonce, self._answer)
            self._nonce, self._deadline, self._answer = b"", None, None
        else:
            raise ProtocolError("an answer that was not asked for")

    def _forward_output(self) -> None:
        try:
            data = os.read(self._output, BUFFER_BYTES)
        except BlockingIOError:
            return
        if data:
            self._forward(OUTPUT, data)
        else:
            self._sources.pop(self._output, None)

    def _forward(self, kind: int, data: bytes) -> None:
        """What is printed or logged, up to a limit for each task."""
        if kind == OUTPUT:
            self._dropped += max(0, len(data) - self._room)
            data = data[: self._room]
        elif len(data) > self._room:
            self._dropped += len(data)
            return
        self._room -= len(data)
        if data:
            self._send(self._to_driver, kind, data)

    def _report_dropped(self) -> None:
        if self._dropped:
            self._send(self._to_driver, OUTPUT, f"\n({self._dropped:,} more bytes are not shown)\n".encode())
            self._dropped = 0

    def _end(self, how: str, *, late: bool = False, broke: bool = False) -> None:
        """Kill the child with all that it started, tell the driver, and exit."""
        stacks = self._stacks_of_child() if late and not self._closing else b""
        process_tree.end_descendants()
        self._forward_output()
        self._report_dropped()
        told = {"how": how, "late": late, "broke": broke, "stacks": stacks.decode(errors="replace")}
        if not self._closing:
            self._driver.settimeout(_SEND_S)
            self._send(self._to_driver, ENDED, self._nonce.ljust(NONCE_BYTES, b"\0"), json.dumps(told).encode())
        os._exit(0)

    def _stacks_of_child(self) -> bytes:
        """What it writes when it is asked for its stacks, the main thread's last; empty where nothing comes."""
        os.kill(self._pid, DUMP_SIGNAL)
        until, size = time.monotonic() + _STACKS_S, 0
        while time.monotonic() < until:
            time.sleep(0.02)
            before, size = size, os.fstat(self._stacks).st_size
            if size and size == before:
                break
        return os.pread(self._stacks, min(size, _STACKS_BYTES), 0).strip()


if __name__ == "__main__":
    main()
