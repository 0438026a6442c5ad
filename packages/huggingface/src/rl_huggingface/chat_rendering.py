"""Rendering chat templates in a process of their own, with limits on time, memory and output.

A template is code that comes with a model: `{% for i in range(10**5) %}` in itself, or `'a' * 10**10`, must not take
the driver with it. One process serves all tokenizers of this one, and is started when the first message is rendered.
It is for plugins: this package renders nothing itself.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rl_core.errors import DataError, EnvironmentProblem

from rl_huggingface.chat_render_worker import LENGTH

Form = Literal["whole", "ask", "continue"]
"""A conversation as it is; up to where the assistant begins to write; up to the end of its last message's content."""

_FIX = "use a chat template that works (tokenizer.chat_template for the policy's), or change the messages"


@dataclass(frozen=True)
class Limits:
    """For one call (all views of one conversation)."""

    seconds: float = 3.0
    """CPU time, so that a busy machine makes no difference."""
    bytes: int = 2 << 30
    characters: int = 32 << 20


@dataclass(frozen=True)
class TemplateFacts:
    """What a template reads: ``variables`` given to it, and every name or text it may look a key up by (``words``)."""

    variables: frozenset[str]
    words: frozenset[str]


@dataclass(frozen=True)
class Rendered:
    """A text, and the parts of it between ``{% generation %}`` and ``{% endgeneration %}``, as characters from, to."""

    text: str
    spans: tuple[tuple[int, int], ...] = ()


class Renderer:
    """Renders templates in a child process, which is started anew when a template has ended it."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._keys: dict[str, int] = {}
        self._facts: dict[str, TemplateFacts] = {}
        self._sent: set[int] = set()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def facts(self, template: str) -> TemplateFacts:
        """What ``template`` reads.

        Raises:
            DataError: it cannot be compiled.
        """
        with self._lock:
            self._key(template)
            return self._facts[template]

    def render(
        self,
        template: str,
        messages: Sequence[Mapping[str, Any]],
        variables: Mapping[str, Any],
        views: Sequence[tuple[int, Form]],
    ) -> list[Rendered]:
        """The conversation in several views, each its first so many messages in a form.

        Raises:
            DataError: the template cannot be compiled, refuses the messages, or exceeds a limit.
        """
        with self._lock:
            key = self._key(template)
            if key not in self._sent:  # the child is a new one
                self._add(key, template)
            found = self._call(
                call="render",
                key=key,
                messages=[dict(m) for m in messages],
                variables=dict(variables),
                views=list(views),
            )
        return [Rendered(text, tuple((first, last) for first, last in spans)) for text, spans in found]

    def close(self) -> None:
        """End the child process."""
        child, self._child = self._child, None
        self._sent.clear()
        if child is not None and self._owner == os.getpid():
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.close()
            child.stdout.close()
            child.kill()
            child.wait()

    def _key(self, template: str) -> int:
        if template not in self._keys:
            key = len(self._keys)
            facts = self._add(key, template)
            self._keys[template], self._facts[template] = key, facts
        return self._keys[template]

    def _add(self, key: int, template: str) -> TemplateFacts:
        found = self._call(call="add", key=key, source=template)
        self._sent.add(key)
        return TemplateFacts(frozenset(found["variables"]), frozenset(found["words"]))

    def _call(self, **request: Any) -> Any:
        what = "cannot be compiled" if request["call"] == "add" else "refuses the messages"
        try:
            body = pickle.dumps(request)
        except Exception as error:  # whatever the objects in a row raise
            raise DataError(f"the messages cannot be given to the chat template: {error}") from error
        answer = self._exchange(body)
        if "error" in answer:
            raise DataError(f"the chat template {what}: {answer['error']}")
        return answer["result"]

    def _exchange(self, body: bytes) -> dict[str, Any]:
        child = self._child
        if child is None or self._owner != os.getpid():  # a forked process must not share its parent's pipes
            child = self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        answer = b""
        try:
            child.stdin.write(LENGTH.pack(len(body)) + body)
            child.stdin.flush()
            header = child.stdout.read(LENGTH.size)
            if len(header) == LENGTH.size:
                answer = child.stdout.read(LENGTH.unpack(header)[0])
        except BrokenPipeError:
            pass
        except BaseException:
            self.close()  # interrupted between a question and its answer
            raise
        if answer:
            return json.loads(answer)
        raise self._ended(child)

    def _ended(self, child: subprocess.Popen[bytes]) -> DataError | EnvironmentProblem:
        status = child.wait()
        self.close()
        if status == -signal.SIGPROF:
            return DataError(f"the chat template did not end within {self._limits.seconds:g} s of CPU time\n    {_FIX}")
        if status in (-signal.SIGSEGV, -signal.SIGABRT):  # a full stack, or memory that C code could not get
            return DataError(f"the chat template crashed its process (signal {-status})\n    {_FIX}")
        return EnvironmentProblem(
            f"the process that renders chat templates ended with status {status}\n"
            f"    check that jinja2 can be imported: {sys.executable} -c 'import jinja2.sandbox'"
        )

    def _start(self) -> subprocess.Popen[bytes]:
        self._child = None
        self._sent.clear()
        script = Path(__file__).with_name("chat_render_worker.py")
        child = subprocess.Popen(
            [sys.executable, "-I", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C in a terminal is not for it
        )
        self._child, self._owner = child, os.getpid()
        limits = self._limits
        first = pickle.dumps(
            {"path": sys.path, "seconds": limits.seconds, "bytes": limits.bytes, "characters": limits.characters}
        )
        assert child.stdin is not None
        child.stdin.write(LENGTH.pack(len(first)) + first)
        return child


@cache
def shared_renderer() -> Renderer:
    """This process's renderer."""
    renderer = Renderer()
    atexit.register(renderer.close)
    return renderer
