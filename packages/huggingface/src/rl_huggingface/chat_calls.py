"""Tool calls in the form that a chat template takes.

Data has a call's ``arguments`` as an object or as JSON text (OpenAI), and next to calls a ``content`` that is null or
empty. Templates take some of these forms: Llama's and Mistral's write text as a string within a string, DeepSeek-V3's
refuses objects, and leaves out the calls of a message whose content is empty. Which forms work is found by rendering
one call in each of them. For plugins that render conversations: the policy's tokenizer, and reward models.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_core.errors import DataError

from rl_huggingface.chat_rendering import shared_renderer

logger = logging.getLogger(__name__)

_NAME, _KEY, _VALUE, _TEXT = "probecall", "probekey", "probevalue", "probetext"
_ARGUMENTS: dict[str, Any] = {"object": {_KEY: _VALUE}, "text": json.dumps({_KEY: _VALUE})}
_CONTENTS: dict[str, Any] = {"null": None, "empty": "", "text": _TEXT}
_OTHER = {"null": "empty", "empty": "null", "object": "text", "text": "object"}

Render = Callable[[list[dict[str, Any]]], str | None]
"""Messages to text; None where the template refuses them."""


@dataclass(frozen=True)
class CallForms:
    """How a template renders tool calls.

    Attributes:
        taken: pairs of a content (``null``, ``empty``, ``text``) and arguments (``object``, ``text``) whose call it
            writes rightly. None at all: it writes calls in a way of its own, or under conditions.
        drops_text: it leaves out the text of a message that has calls.
    """

    taken: frozenset[tuple[str, str]]
    drops_text: bool

    def fit(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """``message``, which has calls, in a form that the template takes; as it is where that is one.

        Raises:
            DataError: the template takes no call together with text, or its arguments cannot become an object.
        """
        content = _content_form(message.get("content"))
        contents = [content, *([] if content == "text" else [_OTHER[content]])]
        chosen = next((form for form in contents if any(form == taken for taken, _ in self.taken)), None)
        if not self.taken:
            return dict(message)
        if chosen is None:
            raise DataError(
                "the chat template leaves out or refuses the tool_calls of a message that has content as well\n"
                "    use a chat template that renders both (tokenizer.chat_template for the policy's), or make two "
                "messages of it"
            )
        calls = [self._fit_call(call, chosen) for call in message["tool_calls"]]
        written = message["content"] if content == "text" else _CONTENTS[chosen]
        return {**message, "content": written, "tool_calls": calls}

    def _fit_call(self, call: Any, content: str) -> Any:
        if not isinstance(call, Mapping):
            return call
        function = call.get("function", call)
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        form = "object" if isinstance(arguments, Mapping) else "text" if isinstance(arguments, str) else None
        if form is None or (content, form) in self.taken:
            return call
        other = _as_text(arguments) if isinstance(arguments, Mapping) else _as_object(str(arguments))
        changed = {**function, "arguments": other}
        return {**call, "function": changed} if "function" in call else changed


class CallFitter:
    """Puts the calls of conversations in the form that their template takes; each template is tried out once."""

    def __init__(self) -> None:
        self._forms: dict[tuple[str, str], CallForms] = {}
        self._warned = False

    def fit(
        self, template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """``messages`` with calls that ``template`` writes rightly, given ``variables``.

        Raises:
            DataError: the template does not read calls; see also :meth:`CallForms.fit`.
        """
        if not has_calls(messages):
            return [dict(message) for message in messages]
        if "tool_calls" not in shared_renderer().facts(template).words:
            raise DataError(
                "a message has tool_calls, but the chat template does not render them\n"
                "    use a chat template that does (tokenizer.chat_template for the policy's), or write the calls into "
                "the messages' content"
            )
        forms = self._of(template, variables)
        if forms.drops_text and not self._warned and any(m.get("tool_calls") and m.get("content") for m in messages):
            self._warned = True
            logger.warning("the chat template leaves out the content of messages with tool_calls")
        return [forms.fit(message) if message.get("tool_calls") else dict(message) for message in messages]

    def _of(self, template: str, variables: Mapping[str, Any]) -> CallForms:
        def render(messages: list[dict[str, Any]]) -> str | None:
            try:
                return shared_renderer().render(template, messages, variables, [(len(messages), "whole")])[0].text
            except DataError:
                return None

        alike = {**variables, "tools": bool(variables.get("tools"))}
        key = template, json.dumps(alike, sort_keys=True, default=repr)
        if key not in self._forms:
            self._forms[key] = call_forms(render)
        return self._forms[key]


def call_forms(render: Render) -> CallForms:
    """Find out what the template behind ``render`` does with calls."""
    for tail in ([], [{"role": "tool", "name": _NAME, "tool_call_id": _NAME, "content": "proberesult"}]):
        texts = {
            (content, arguments): render([{"role": "user", "content": "user"}, _probe(content, arguments), *tail])
            for content in _CONTENTS
            for arguments in _ARGUMENTS
        }
        taken = frozenset(form for form, text in texts.items() if text is not None and _is_right(text, form, texts))
        if taken:
            written = [texts[form] or "" for form in taken if form[0] == "text"]
            return CallForms(taken, drops_text=bool(written) and not any(_TEXT in text for text in written))
    return CallForms(frozenset(), drops_text=False)


def _probe(content: str, arguments: str) -> dict[str, Any]:
    function = {"name": _NAME, "arguments": _ARGUMENTS[arguments]}
    call = {"id": _NAME, "type": "function", "function": function}  # Mistral's ids have nine characters
    return {"role": "assistant", "content": _CONTENTS[content], "tool_calls": [call]}


def _is_right(text: str, form: tuple[str, str], texts: Mapping[tuple[str, str], str | None]) -> bool:
    """The call is there, with arguments that are neither a string within a string nor Python's way to write a dict."""
    if any(word not in text for word in (_NAME, _KEY, _VALUE)) or f'\\"{_KEY}' in text or f"'{_KEY}'" in text:
        return False
    others = [other.count("None") for (content, _), other in texts.items() if content != "null" and other is not None]
    return form[0] != "null" or text.count("None") <= min(others, default=0)


def _content_form(content: Any) -> str:
    return "null" if content is None else "text" if content else "empty"


def _as_text(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _as_object(arguments: str) -> dict[str, Any]:
    try:
        value = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DataError(
            f"the arguments of a tool call are {arguments[:100]!r}, not the JSON text of an object\n"
            "    the chat template needs one: correct or remove the row"
        )
    return value


def has_calls(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any of the messages has tool calls."""
    return any(message.get("tool_calls") for message in messages)
