"""From a conversation to text that is cut into what the model reads and what it is trained to write.

A turn begins where the template's generation prompt ends, and ends with the end token that the template puts there. The
template marks the assistant's parts (``{% generation %}``), or the text is rendered up to each turn and up to its end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rl_core.errors import DataError
from rl_huggingface.chat_calls import CallFitter
from rl_huggingface.chat_messages import OWN_KEYS, cleaned, continues, is_trained, leading_token
from rl_huggingface.chat_rendering import Form, Rendered, TemplateFacts, shared_renderer

from rl_data_text.tokenizers.notices import Notices

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

_TURN = "assistant-turn-1f6b0c"
"""Stands for an assistant's text; no template has a reason to change it."""

NO_TEMPLATE = (
    "the tokenizer has no chat template, but the row has chat messages\n"
    "    set tokenizer.chat_template to a Jinja template or a file with one, or use text prompts"
)

_UNSTABLE = (
    "the chat template is not prefix-stable: what it asks the model to go on with at message {index}, {asked!r}, is "
    "not how it renders the conversation with that message, so the assistant's tokens cannot be told apart\n"
    "    give the answer as text (prompt and completion: it is trained on to the letter), set chat_template_kwargs, or "
    "set tokenizer.chat_template to one that renders every turn on its own"
)

_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})


@dataclass(frozen=True)
class Segment:
    """A stretch of rendered text.

    Attributes:
        trained: the assistant wrote it.
        closed: it ends with an end token.
    """

    text: str
    trained: bool
    closed: bool = False


@dataclass(frozen=True)
class Extras:
    """Inputs of a template in addition to the messages: JSON schemas of ``tools``, and variables by name."""

    tools: Sequence[Mapping[str, Any]] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same for extras with which a template renders an assistant's turn alike."""
        return json.dumps([bool(self.tools), self.kwargs], sort_keys=True, default=repr)


class ChatTemplate:
    """The chat template of a tokenizer, or its several ones.

    Args:
        tokenizer: a Hugging Face tokenizer.
        name: which of its named templates to use; without it ``tool_use`` where there are tools, else ``default``,
            as transformers chooses.
        kwargs: variables for every conversation; a row's own come on top of them.

    Attributes:
        end_tokens: texts of the tokens that may end a turn; the one that the template puts there always does.

    Raises:
        DataError: no template of that name, or ``kwargs`` that no template reads.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        name: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._templates = _named(tokenizer.chat_template)
        self._special = {key: _as_text(value) for key, value in tokenizer.special_tokens_map.items()}
        self._added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
        self.end_tokens: tuple[str, ...] = (str(tokenizer.eos_token),)
        self._name = name
        self._kwargs = dict(kwargs or {})
        self._endings: dict[str, tuple[str, str]] = {}
        self._calls = CallFitter()
        self._notices = Notices()
        if name is not None and name not in self._templates:
            raise DataError(
                f"tokenizer.chat_template_name: there is no chat template {name!r}\n"
                f"    the tokenizer has {', '.join(sorted(self._templates)) or 'none'}"
            )
        self._check_kwargs()

    def prompt(self, messages: Sequence[Mapping[str, Any]], extras: Extras) -> str:
        """The conversation up to where the model continues: after the template's generation prompt, or, where its last
        message is the assistant's, after that message's text.

        Raises:
            DataError: no chat template, or the template refuses these messages.
        """
        (found,) = self._views(messages, extras, [(len(messages), "continue" if continues(messages) else "ask")])
        return found.text

    def whole(self, messages: Sequence[Mapping[str, Any]], extras: Extras) -> str:
        """The conversation as it is.

        Raises:
            DataError: no chat template, or the template refuses these messages.
        """
        return self._views(messages, extras, [(len(messages), "whole")])[0].text

    def ending(self, extras: Extras) -> str:
        """What the template ends an assistant's last message with: a token of its own, often nothing."""
        return self._after_turn(extras)[0]

    def _after_turn(self, extras: Extras) -> tuple[str, str]:
        """What follows an assistant's last message: the token that ends it, and what is more than white space then.

        (Some templates ask for the next answer whether they are told to or not.)
        """
        key = extras.key
        if key not in self._endings:
            try:
                whole = self.whole([{"role": "user", "content": "user"}, _turn()], extras)
            except DataError:  # it does not like these messages; with real ones it will say so
                whole = ""
            after = whole.partition(_TURN)[2] if whole.count(_TURN) == 1 else ""
            ending = leading_token(after, self._added)
            more = after[len(ending) :]
            self._endings[key] = ending, more if more.strip() else ""
        return self._endings[key]

    def reply(self, messages: Sequence[Mapping[str, Any]], extras: Extras) -> tuple[str, str]:
        """What the template puts after an assistant's text, in two parts: the end of its turn, and the rest.

        The rest is ``messages`` and where the assistant begins again.

        Raises:
            DataError: no chat template, one that refuses the messages, or one that changes what the assistant wrote.
        """
        before = [{"role": "user", "content": "user"}, _turn()]
        whole = self.prompt([*before, *messages], extras)
        if whole.count(_TURN) != 1:
            raise DataError(
                "the chat template does not render an assistant's message as it is, once, so an environment's messages "
                "cannot be put after it\n    set tokenizer.chat_template to one that does"
            )
        after, ending = whole.partition(_TURN)[2], self.ending(extras)
        if after.startswith(ending):
            return ending, after[len(ending) :]
        # Some templates end a last turn with another token than an earlier one (gpt-oss).
        closing = leading_token(after, self._added)
        return closing, after[len(closing) :]

    def segments(
        self, messages: Sequence[Mapping[str, Any]], extras: Extras, *, given: int = 0, opening: str | None = None
    ) -> list[Segment]:
        """The conversation in order, cut at the boundaries of what is trained on.

        Args:
            given: this many messages at the start are the prompt; nothing in them is trained on.
            opening: the last of those is the assistant's and continues after this text.

        Raises:
            DataError: no assistant message to train on, no template, or one that is not prefix-stable.
        """
        start = given if opening is None else given - 1
        assistant = [i for i in range(start, len(messages)) if messages[i].get("role") == "assistant"]
        if not assistant:
            raise DataError("there is no assistant message to learn from")
        trained = [i for i in assistant if is_trained(messages[i])]
        if not trained:
            raise DataError("every assistant message is marked as not to be trained on\n    remove the row")
        if _GENERATION.search(self._select(extras)):
            return self._marked(messages, extras, given, opening, [i for i in assistant if i not in trained])
        return self._turn_by_turn(messages, extras, trained, opening)

    def closed(self, text: str, ending: str) -> int | None:
        """The length of ``text`` up to and with the end token it ends with; None where it ends otherwise."""
        body = text.rstrip()
        return len(body) if body.endswith((*self.end_tokens, *([ending.strip()] if ending else []))) else None

    def _turn_by_turn(
        self, messages: Sequence[Mapping[str, Any]], extras: Extras, trained: list[int], opening: str | None
    ) -> list[Segment]:
        views: list[tuple[int, Form]] = [(len(messages), "whole")]
        for index in trained:
            views += [(index, "ask"), (index + 1, "whole")] if index else [(1, "whole")]
        found = iter([view.text for view in self._views(messages, extras, views)])
        whole, (ending, more) = next(found), self._after_turn(extras)
        turns = []
        for index in trained:
            before = next(found) if index else ""
            after = next(found).removesuffix(more)
            if index == trained[0] and opening is not None:
                before = opening
            elif not index:
                before = self._header(messages[0], after, extras)
            size = self.closed(after[len(before) :], ending)
            turns.append((index, before, after, size))
        index, before, after, _ = turns[-1]
        if not after.startswith(before):
            raise DataError(_UNSTABLE.format(index=index, asked=before[-60:]))
        whole = whole if whole.startswith(after) else after  # what follows the last turn is nothing to learn
        segments, done, left_out = [], 0, 0
        for _index, before, after, size in turns:
            end = len(after) if size is None else len(before) + size
            if len(before) < done or not (after.startswith(before) and whole.startswith(after[:end])):
                left_out += 1
                continue
            segments += [
                Segment(whole[done : len(before)], False),
                Segment(whole[len(before) : end], True, closed=size is not None),
            ]
            done = end
        if left_out:
            self._notices.left_out(left_out, len(turns))
        return [s for s in [*segments, Segment(whole[done:], False)] if s.text]

    def _marked(
        self,
        messages: Sequence[Mapping[str, Any]],
        extras: Extras,
        given: int,
        opening: str | None,
        left_out: list[int],
    ) -> list[Segment]:
        views: list[tuple[int, Form]] = [(len(messages), "whole")]
        views += [(given, "ask")] if given and opening is None else []
        for index in left_out:
            views += [(index, "whole"), (index + 1, "whole")] if index else [(1, "whole")]
        whole, *others = self._views(messages, extras, views)
        prompt = opening if opening is not None else others.pop(0).text if given else ""
        if not whole.text.startswith(prompt):
            raise DataError(_UNSTABLE.format(index=given, asked=prompt[-60:]))
        excluded = []
        for index in left_out:
            before = others.pop(0).text if index else ""
            after = others.pop(0).text
            if not (whole.text.startswith(before) and whole.text.startswith(after.rstrip())):
                raise DataError(_UNSTABLE.format(index=index, asked=before[-60:]))
            excluded.append(range(len(before), len(after)))
        ending = self.ending(extras)
        found: list[Segment] = []
        done = 0
        for first, last in whole.spans:
            first = max(first, len(prompt))
            if first >= last or any(first in part for part in excluded):
                continue
            size = self.closed(whole.text[first:last], ending)
            last = last if size is None else first + size
            found += [
                Segment(whole.text[done:first], False),
                Segment(whole.text[first:last], True, closed=size is not None),
            ]
            done = last
        if not found:
            raise DataError("the chat template marks nothing in these messages with {% generation %}")
        return [s for s in [*found, Segment(whole.text[done:], False)] if s.text]

    def _header(self, message: Mapping[str, Any], after: str, extras: Extras) -> str:
        """What ``after``, a conversation of this one assistant's message, has in front of what the assistant wrote."""
        question = [{"role": "user", "content": "user"}]
        try:
            whole, asked = self._views(question, extras, [(1, "whole"), (1, "ask")])
            prompt = asked.text.removeprefix(whole.text) if asked.text.startswith(whole.text) else ""
        except DataError:
            prompt = ""
        if prompt and prompt in after:
            return after[: after.index(prompt) + len(prompt)]
        if message.get("content"):
            header = self.whole([{**message, "content": _TURN}], extras).partition(_TURN)[0]
            if after.startswith(header):
                return header
        raise DataError(_UNSTABLE.format(index=0, asked=prompt[-60:]))

    def _views(
        self, messages: Sequence[Mapping[str, Any]], extras: Extras, views: Sequence[tuple[int, Form]]
    ) -> list[Rendered]:
        template = self._select(extras)
        clean = cleaned(messages)
        variables = {
            **self._special,
            "tools": [dict(tool) for tool in extras.tools] or None,
            "documents": None,
            **self._kwargs,
            **extras.kwargs,
        }
        self._check_reads(template, clean, extras)
        fitted = self._calls.fit(template, clean, variables)
        return shared_renderer().render(template, fitted, variables, views)

    def _select(self, extras: Extras) -> str:
        named = self._templates
        if not named:
            raise DataError(NO_TEMPLATE)
        if self._name is not None:
            return named[self._name]
        if extras.tools and "tool_use" in named:
            return named["tool_use"]
        if "default" not in named:
            raise DataError(
                f"the tokenizer has several chat templates ({', '.join(sorted(named))}), none of them is 'default'\n"
                "    set tokenizer.chat_template_name to one of them"
            )
        return named["default"]

    def _check_kwargs(self) -> None:
        """Every variable of the config is one that some template reads."""
        reserved = sorted(_RESERVED & set(self._kwargs))
        if reserved:
            raise DataError(f"tokenizer.chat_template_kwargs: {reserved[0]!r} is not for the config to set")
        if not self._kwargs or not self._templates:
            return
        reads = frozenset().union(*(shared_renderer().facts(t).variables for t in self._templates.values()))
        unread = sorted(set(self._kwargs) - reads)
        if unread:
            own = sorted(reads - _RESERVED - set(self._special))
            raise DataError(
                f"tokenizer.chat_template_kwargs: the chat template does not read {unread[0]!r}\n"
                f"    it reads {', '.join(own) or 'no variables of its own'}"
            )

    def _check_reads(self, template: str, messages: Sequence[Mapping[str, Any]], extras: Extras) -> None:
        """Report, once each, what the data has and the template does not read."""
        keys = frozenset().union(*messages)
        if keys <= OWN_KEYS and not extras.tools and not extras.kwargs:
            return
        facts: TemplateFacts = shared_renderer().facts(template)
        reserved = sorted(_RESERVED & set(extras.kwargs))
        if reserved:
            raise DataError(f"'chat_template_kwargs': {reserved[0]!r} is not a variable for a row to set")
        for key in keys - OWN_KEYS - facts.words:
            self._notices.unread(f"the message key {key!r}")
        for name in extras.kwargs.keys() - facts.variables:
            self._notices.unread(f"{name!r} of chat_template_kwargs")
        if extras.tools and "tools" not in facts.variables:
            self._notices.unread("'tools'")


def _turn() -> dict[str, str]:
    return {"role": "assistant", "content": _TURN}


def _named(templates: Any) -> dict[str, str]:
    """Templates by name, whatever form the tokenizer has them in."""
    if not templates:
        return {}
    if isinstance(templates, str):
        return {"default": templates}
    if isinstance(templates, Mapping):
        return dict(templates)
    return {one["name"]: one["template"] for one in templates}


def _as_text(value: Any) -> Any:
    return [str(one) for one in value] if isinstance(value, list | tuple) else str(value)
