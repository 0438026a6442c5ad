"""The process that renders chat templates, run as a script: a template is code of whoever made the model.

Its template language is that of ``transformers.PreTrainedTokenizerBase.apply_chat_template``: the same sandbox,
extensions, filters and functions. Frames on standard input are pickles, on standard output JSON, each behind its
length in 4 bytes. A template that runs away ends the process: its CPU time and memory are limited by the kernel, so
nothing that a template can do gets past it. Only the standard library and jinja2 are imported.
"""

from __future__ import annotations

import json
import pickle
import resource
import signal
import struct
import sys
from typing import Any

LENGTH = struct.Struct("!I")
CONTINUE_HERE = "CONTINUE_FINAL_MESSAGE_TAG "


def environment() -> Any:
    """Jinja as ``apply_chat_template`` sets it up."""
    from datetime import datetime

    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """``{% generation %}`` … ``{% endgeneration %}`` marks what the assistant wrote."""

        tags = {"generation"}  # noqa: RUF012 (jinja2's own form)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Any) -> str:
            text = caller()
            rendering: Any = self.environment
            start = sum(len(block) for block in rendering.written)
            rendering.spans.append((start, start + len(text)))
            return text

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made: Any = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


class Templates:
    """Compiled templates by the key that the other side gave them."""

    def __init__(self, most_characters: int) -> None:
        self._environment = environment()
        self._compiled: dict[int, Any] = {}
        self._most_characters = most_characters

    def add(self, key: int, source: str) -> dict[str, Any]:
        """Compile; ``variables`` that the template reads from outside, and all ``words`` it may read a key by."""
        from jinja2 import meta, nodes

        self._compiled[key] = self._environment.from_string(source)
        tree = self._environment.parse(source)
        words = {node.attr for node in tree.find_all(nodes.Getattr)}
        words |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        return {"variables": sorted(meta.find_undeclared_variables(tree)), "words": sorted(words)}

    def render(self, key: int, messages: list[Any], variables: dict[str, Any], views: list[Any]) -> list[Any]:
        """``[text, spans]`` of each view: its first messages, and whether ``ask``ing, ``continue``d or as they are."""
        return [self._view(self._compiled[key], messages[:count], variables, form) for count, form in views]

    def _view(self, template: Any, messages: list[Any], variables: dict[str, Any], form: str) -> list[Any]:
        if form == "continue":
            ending = messages[-1]["content"]
            messages = [*messages[:-1], {**messages[-1], "content": ending + CONTINUE_HERE}]
        shared = self._environment
        shared.written, shared.spans = [], []
        size = 0
        asks = form == "ask"
        for block in template.generate(messages=messages, add_generation_prompt=asks, **variables):
            size += len(block)
            if size > self._most_characters:
                raise ValueError(f"it writes more than {self._most_characters:,} characters")
            shared.written.append(block)
        text = "".join(shared.written)
        return [_up_to_tag(text, ending) if form == "continue" else text, shared.spans]


def _up_to_tag(text: str, ending: str) -> str:
    """As transformers' ``continue_final_message``: the text ends where the last message's content does."""
    tag = CONTINUE_HERE.strip()
    if tag not in text or ending.strip() not in text:
        raise ValueError("the last message, which is to be continued, is not in what it renders")
    place = text.rindex(tag)
    return text[:place] if text[place : place + len(CONTINUE_HERE)] == CONTINUE_HERE else text[:place].rstrip()


def _answer(templates: Templates, request: dict[str, Any]) -> dict[str, Any]:
    call = getattr(templates, request.pop("call"))
    try:
        return {"result": call(**request)}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except RecursionError:
        return {"error": "it recurses too deeply"}
    # A template can raise anything that Python's operators, filters and methods can.
    except Exception as error:  # noqa: BLE001
        known = type(error).__module__.startswith("jinja2")
        return {"error": str(error) if known and str(error) else f"{type(error).__name__}: {error}"}


def main() -> None:
    """Serve until standard input ends. The first frame has the module path and the limits."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    templates = None
    while len(header := source.read(LENGTH.size)) == LENGTH.size:
        body = source.read(LENGTH.unpack(header)[0])
        if templates is None:
            limits = pickle.loads(body)
            sys.path[:] = limits["path"]
            templates = Templates(limits["characters"])
            resource.setrlimit(resource.RLIMIT_AS, (limits["bytes"], limits["bytes"]))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            continue
        signal.setitimer(signal.ITIMER_PROF, limits["seconds"])  # unhandled, SIGPROF ends the process
        try:
            answer = json.dumps(_answer(templates, pickle.loads(body))).encode()
        except MemoryError:
            answer = json.dumps({"error": "it needs too much memory"}).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        sink.write(LENGTH.pack(len(answer)) + answer)
        sink.flush()


if __name__ == "__main__":
    main()
