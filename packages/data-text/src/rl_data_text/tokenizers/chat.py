"""Cutting a rendered conversation into what the model reads and what it is trained to write.

Two ways to find the assistant's parts: the template marks them itself (``{% generation %}``), or
the conversation is rendered turn by turn and the differences are taken, which needs a template
whose rendering of a conversation's start is a prefix of its rendering of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_core.errors import DataError

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

_TURN = "assistant-turn-1f6b0c"
"""Stands for an assistant's text; no template has a reason to change it."""

NO_TEMPLATE = (
    "the tokenizer has no chat template, but the row has chat messages\n"
    "    set tokenizer.chat_template to a Jinja template or a file with one, or use text prompts"
)

_UNSTABLE = (
    "the chat template is not prefix-stable: message INDEX is rendered differently when more messages follow, "
    "so the assistant's tokens cannot be told apart\n"
    "    set tokenizer.chat_template to one that renders every turn on its own, or that marks the assistant's parts "
    "with {% generation %} … {% endgeneration %}"
)


@dataclass(frozen=True)
class Segment:
    """A stretch of rendered text; ``trained`` where the assistant wrote it."""

    text: str
    trained: bool


def render(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, ask: bool, tools: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The conversation as text; with ``ask`` it ends where the assistant begins to write.

    ``tools`` are JSON schemas of functions that the template may describe to the model.

    Raises:
        DataError: no chat template, or the template refuses these messages.
    """
    if not tokenizer.chat_template:
        raise DataError(NO_TEMPLATE)
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            [dict(m) for m in messages],
            tools=[dict(tool) for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=ask,
        )
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise DataError(f"the chat template refuses the messages: {error}") from error


def reply(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """What the template puts after an assistant's text: its end, ``messages``, and where the assistant begins again.

    Raises:
        DataError: no chat template, one that refuses the messages, or one that changes what the assistant wrote.
    """
    before = [{"role": "user", "content": "user"}, {"role": "assistant", "content": _TURN}]
    whole = render(tokenizer, [*before, *messages], ask=True)
    if whole.count(_TURN) != 1:
        raise DataError(
            "the chat template does not render an assistant's message as it is, once, so an environment's messages "
            "cannot be put after it\n    set tokenizer.chat_template to one that does"
        )
    return whole.partition(_TURN)[2]


def segments(tokenizer: Any, messages: Sequence[Mapping[str, Any]], *, given: int = 0) -> list[Segment]:
    """The conversation in order, cut at the boundaries of the assistant's parts.

    Args:
        given: this many messages at the start are the prompt; nothing in them is trained on.

    Raises:
        DataError: no assistant message after ``given``, no template, or one that is not prefix-stable.
    """
    if not any(m.get("role") == "assistant" for m in messages[given:]):
        raise DataError("there is no assistant message to learn from")
    if _GENERATION.search(tokenizer.chat_template or ""):
        return _marked_segments(tokenizer, messages, given)
    return _turn_by_turn(tokenizer, messages, given)


def _turn_by_turn(tokenizer: Any, messages: Sequence[Mapping[str, Any]], given: int) -> list[Segment]:
    whole = render(tokenizer, messages, ask=False)
    found: list[Segment] = []
    done = 0
    for index in range(given, len(messages)):
        if messages[index].get("role") != "assistant":
            continue
        before = render(tokenizer, messages[:index], ask=True) if index else ""
        after = whole if index == len(messages) - 1 else render(tokenizer, messages[: index + 1], ask=False)
        if len(before) < done or not (whole.startswith(after) and after.startswith(before)):
            raise DataError(_UNSTABLE.replace("INDEX", str(index)))
        found += [Segment(whole[done : len(before)], False), Segment(whole[len(before) : len(after)], True)]
        done = len(after)
    return [s for s in [*found, Segment(whole[done:], False)] if s.text]


def _marked_segments(tokenizer: Any, messages: Sequence[Mapping[str, Any]], given: int) -> list[Segment]:
    from transformers.utils.chat_template_utils import render_jinja_template

    prompt = render(tokenizer, messages[:given], ask=True) if given else ""
    whole = render(tokenizer, messages, ask=False)
    if not whole.startswith(prompt):
        raise DataError(_UNSTABLE.replace("INDEX", str(given - 1)))
    rendered: Any = render_jinja_template(
        [[dict(m) for m in messages]],
        chat_template=tokenizer.chat_template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    found: list[Segment] = []
    done = 0
    for first, last in rendered[1][0]:
        first = max(first, len(prompt))
        if first < last:
            found += [Segment(whole[done:first], False), Segment(whole[first:last], True)]
            done = last
    if not found:
        raise DataError("the chat template marks nothing in these messages with {% generation %}")
    return [s for s in [*found, Segment(whole[done:], False)] if s.text]
