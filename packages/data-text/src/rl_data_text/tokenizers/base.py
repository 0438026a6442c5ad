"""The tokenizer every component of this package is, whatever way it was obtained.

A sequence has the tokens of its whole text, except where a token would straddle the beginning of what the model
writes: there the prompt's tokens are those of the prompt alone, as in rollouts, and the model's text begins anew.
What follows is tokenized as a continuation: tokenizers that put a space in front of every text (SentencePiece, such as
Llama 2's) put none in front of it.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rl_core.contracts.data import Row
from rl_core.contracts.tokenizer import LossOn, Message, Text
from rl_core.errors import DataError
from rl_huggingface.chat_messages import continues, is_trained
from rl_huggingface.chat_options import row_template_kwargs, row_tools

from rl_data_text.config import TextTokenizerConfig
from rl_data_text.tokenizers.chat import ChatTemplate, Extras, Segment
from rl_data_text.tokenizers.ends import end_token_ids, never_sampled, without_ends
from rl_data_text.tokenizers.saving import save_tokenizer

_CONTEXT = 64
"""Characters in front of a text that decide how it is tokenized: more than any special token has."""

_NEUTRAL = ("\n", ".", "0")
"""Texts to put in front of a continuation whose own context merges with it."""


class TextTokenizer(ABC):
    """Implements :class:`rl_core.contracts.tokenizer.Tokenizer` around a Hugging Face tokenizer."""

    def __init__(self, config: TextTokenizerConfig) -> None:
        self.config = config
        self._tokenizer: Any = None
        self._backend: Any = None
        self._unknown: int | None = None
        self._prefix: list[int] = []
        self._prepends = False
        self._eos = -1
        self._size = 0
        self._ends: tuple[int, ...] = ()
        self._never: tuple[int, ...] = ()
        self._meaningless: frozenset[int] = frozenset()

    @abstractmethod
    def obtain(self, model_path: str | None, rows: Sequence[Row], *, trust_remote_code: bool) -> Any:
        """The Hugging Face tokenizer to use."""

    def load(self, model_path: str | None, rows: Sequence[Row], *, trust_remote_code: bool = False) -> None:
        """Load from ``model_path``, or build from ``rows``.

        Raises:
            DataError: no tokenizer in the folder, none that can be built, or one that cannot end a text.
        """
        template = read_template(self.config.chat_template)
        tokenizer = self.obtain(model_path, rows, trust_remote_code=trust_remote_code)
        if tokenizer.eos_token_id is None:
            raise DataError(
                "the tokenizer has no end-of-sequence token, so no completion could ever end\n"
                '    set "eos_token" in its tokenizer_config.json'
            )
        if template is not None:
            tokenizer.chat_template = template
        self._adopt(tokenizer, model_path)

    def _adopt(self, tokenizer: Any, folder: str | None) -> None:
        self._tokenizer = tokenizer
        self._eos = int(tokenizer.eos_token_id)
        self._size = max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            # A tokenizer.json may carry settings of whoever trained it; texts are never cut or padded here.
            self._backend.no_truncation()
            self._backend.no_padding()
        self._unknown = _unexpressible(self._backend)
        opening = list(tokenizer("")["input_ids"])
        self._prefix = opening[:1] if opening and opening[0] == tokenizer.bos_token_id else []
        self._chat = ChatTemplate(
            tokenizer, name=self.config.chat_template_name, kwargs=self.config.chat_template_kwargs
        )
        self._ends = end_token_ids(tokenizer, folder, closing=self._chat.ending(Extras()), size=self._size)
        self._chat.end_tokens = tuple(tokenizer.convert_ids_to_tokens(list(self._ends)))
        self._never = never_sampled(tokenizer, self._ends, size=self._size)
        names = (tokenizer.bos_token_id, tokenizer.pad_token_id)
        self._meaningless = frozenset({*self._never, *(i for i in names if i is not None)} - {*self._ends})
        self._prepends = any(self._raw(before + "a")[-len(self._raw("a")) :] != self._raw("a") for before in _NEUTRAL)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        self._check_loaded()
        return self._size

    @property
    def special_tokens(self) -> Mapping[str, int | None]:
        """``bos_token_id``, ``eos_token_id``, ``pad_token_id``; None where there is no such token."""
        self._check_loaded()
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        return {name: getattr(self._tokenizer, name) for name in names}

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """What a completion may end with: the end-of-sequence token, then those of the model and of its template."""
        self._check_loaded()
        return self._ends

    @property
    def never_sampled(self) -> tuple[int, ...]:
        """Ids that mean nothing in a text: padding, the unknown token, fillers and ids without a token."""
        self._check_loaded()
        return self._never

    def encode_prompt(
        self,
        prompt: Text,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """int32 [P]: text behind the tokenizer's opening token if it has one; messages through the chat template.

        Raises:
            DataError: a character the tokenizer cannot express, or a chat template that is missing or refuses.
        """
        self._check_loaded()
        if isinstance(prompt, str):
            return np.array(self._text_prompt(prompt), np.int32)
        text = self._chat.prompt(prompt, Extras(tools, template_kwargs or {}))
        return np.array(self._encode(text), np.int32)

    def encode_reply(
        self,
        messages: Sequence[Message],
        *,
        chat: bool,
        ended: bool,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """int32 [E]: the tokens between the end of a model's turn and the beginning of its next one.

        Text prompts are continued with the messages' contents alone; chat prompts with what the template puts after
        an assistant's text, less the end token where the model wrote it itself (``ended``).

        Raises:
            DataError: a character the tokenizer cannot express, or a chat template that is missing, refuses the
                messages, or changes what the assistant wrote.
        """
        self._check_loaded()
        if chat:
            closing, text = self._chat.reply(messages, Extras(tools, template_kwargs or {}))
        else:
            closing, text = "", "".join(str(m["content"]) for m in messages)
        if ended:
            return np.array(self._after(closing or str(self._tokenizer.eos_token), text), np.int32)
        return np.array(self._after(_NEUTRAL[0], closing + text), np.int32)

    def shorten(self, text: str, max_tokens: int) -> str:
        """``text``, cut at its end where it has more than ``max_tokens`` tokens."""
        self._check_loaded()
        tokens = self._encode(text)
        return text if len(tokens) <= max_tokens else self.decode(tokens[:max_tokens])

    def encode_example(self, row: Row, loss_on: LossOn) -> tuple[np.ndarray, np.ndarray]:
        """``(tokens int32 [T], loss_mask float32 [T])``.

        A row with a ``completion`` gives prompt + completion + end token; one with ``messages``
        the rendered conversation, in which each assistant turn is trained on up to and including
        its end token (one is put at the end where the template has none). The first token's mask
        is 0: nothing predicts it.

        Raises:
            DataError: neither is there, or it cannot be encoded; the message starts with the row's place.
        """
        self._check_loaded()
        try:
            tokens, mask = self._example(row)
        except DataError as error:
            raise DataError(f"{row.get('__where__', 'a row')}: {error}") from error.__cause__
        masked = np.ones(len(tokens), np.float32) if loss_on == "all" else np.array(mask, np.float32)
        masked[:1] = 0
        return np.array(tokens, np.int32), masked

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Text exactly as tokenized, without opening token, padding, fillers, and the end tokens at its end.

        Other special tokens are kept as text: a tool call, a thought or a channel is marked by them.
        """
        self._check_loaded()
        ids = tokens.tolist() if isinstance(tokens, np.ndarray) else list(tokens)
        ids = without_ends(ids, self._ends, self._meaningless, self._tokenizer.bos_token_id)
        if self._backend is not None:
            return self._backend.decode(ids, skip_special_tokens=False)
        return self._tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False, spaces_between_special_tokens=False
        )

    def save(self, directory: str) -> None:
        """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``."""
        self._check_loaded()
        save_tokenizer(self._tokenizer, directory)

    def _example(self, row: Row) -> tuple[list[int], list[int]]:
        prompt, completion = row.get("prompt"), row.get("completion")
        if isinstance(completion, str):
            return self._text_completion(row, completion)
        extras = Extras(row_tools(row), row_template_kwargs(row))
        if completion is not None:
            return self._message_completion(_as_messages(prompt), list(completion), extras)
        if row.get("messages") is not None:
            return self._conversation(row["messages"], extras)
        columns = ", ".join(name for name in row if not name.startswith("__"))
        raise DataError(
            f"there is no 'completion' and no 'messages' (columns: {columns})\n"
            "    map one in the data section, e.g. completion: answer"
        )

    def _text_completion(self, row: Row, completion: str) -> tuple[list[int], list[int]]:
        """A completion to the letter, whatever the template makes of messages, and the end that the template writes."""
        prompt = row.get("prompt")
        if prompt is None or isinstance(prompt, str):
            ids, ending = self._text_prompt(prompt or ""), ""
            before = prompt or ""
        else:
            extras = Extras(row_tools(row), row_template_kwargs(row))
            before, ending = self._chat.prompt(prompt, extras), self._chat.ending(extras)
            ids = self._encode(before)
        has_ended = bool(ending) and completion.rstrip().endswith(ending.strip())
        trained = self._after(before, completion.rstrip() if has_ended else completion + ending)
        if not ending and (not trained or trained[-1] not in self._ends):
            trained.append(self._eos)
        return ids + trained, [0] * len(ids) + [1] * len(trained)

    def _message_completion(
        self, prompt: list[Message], completion: list[Message], extras: Extras
    ) -> tuple[list[int], list[int]]:
        if not (continues(prompt) and completion and completion[0].get("role") == "assistant"):
            return self._conversation([*prompt, *completion], extras, given=len(prompt))
        # The prompt's last message is continued, as in rollouts: the two are one message.
        opening = self._chat.prompt(prompt, extras)
        first = {**prompt[-1], **completion[0], "content": prompt[-1]["content"] + (completion[0].get("content") or "")}
        messages = [*prompt[:-1], first, *completion[1:]]
        return self._conversation(messages, extras, given=len(prompt), opening=opening)

    def _conversation(
        self, messages: Sequence[Message], extras: Extras, *, given: int = 0, opening: str | None = None
    ) -> tuple[list[int], list[int]]:
        if not messages:
            raise DataError("the list of messages is empty")
        last = messages[-1]
        ends_with_answer = last.get("role") == "assistant" and is_trained(last)
        parts = self._chat.segments(messages, extras, given=given, opening=opening)
        return self._join(parts, ends_with_answer, {*self._ends, *self._encode(self._chat.ending(extras))[-1:]})

    def _join(self, parts: Sequence[Segment], ends_with_answer: bool, ends: set[int]) -> tuple[list[int], list[int]]:
        """Tokenize each part behind those before it; an end token right behind a trained part belongs to it."""
        tokens: list[int] = []
        mask: list[int] = []
        before, open_turn, closed = "", False, False
        for part in parts:
            ids = self._after(before, part.text)
            tokens += ids
            if part.trained:
                mask += [1] * len(ids)
                closed = part.closed
            elif ids:
                closes = open_turn and ids[0] in ends
                mask += [int(closes), *[0] * (len(ids) - 1)]
                closed = closed or closes
            open_turn = part.trained and not part.closed
            before = (before + part.text)[-_CONTEXT:]
        if 1 not in mask:
            raise DataError("the assistant's messages are empty")
        if ends_with_answer and not closed:
            last = len(mask) - mask[::-1].index(1)
            tokens, mask = [*tokens[:last], self._eos], [*mask[:last], 1]
        return tokens, mask

    def _text_prompt(self, prompt: str) -> list[int]:
        """A text behind the opening token, which a text that was rendered elsewhere may have already."""
        ids = self._encode(prompt) if prompt else []
        return ids if self._prefix and ids[:1] == self._prefix else [*self._prefix, *ids]

    def _after(self, before: str, text: str) -> list[int]:
        """The tokens of ``text`` where it continues ``before``, whose own tokens stand already."""
        if not before or not text or not self._prepends:
            return self._encode(text) if text else []
        for context in (before[-_CONTEXT:], *_NEUTRAL):
            known, both = self._raw(context), self._encode(context + text)
            if both[: len(known)] == known:
                return both[len(known) :]
        return self._encode(text)

    def _raw(self, text: str) -> list[int]:
        """Tokens, unknown ones included."""
        if self._backend is None:
            return self._tokenizer.encode(text, add_special_tokens=False)
        return self._backend.encode(text, add_special_tokens=False).ids

    def _encode(self, text: str) -> list[int]:
        if self._backend is None:
            return self._tokenizer.encode(text, add_special_tokens=False)
        ids = self._backend.encode(text, add_special_tokens=False).ids
        if self._unknown is not None and self._unknown in ids:
            self._refuse_unknown(text)
        return ids

    def _refuse_unknown(self, text: str) -> None:
        """Raise for the first character that has no token."""
        for index, character in enumerate(text):
            if self._unknown in self._backend.encode(character, add_special_tokens=False).ids:
                nearby = text[max(0, index - 20) : index + 20]
                raise DataError(
                    f"the tokenizer does not know the character {character!r} (U+{ord(character):04X}) in {nearby!r}\n"
                    "    add it to tokenizer.alphabet (a new model), or remove it from the data"
                )
        raise DataError(
            f"the text holds the tokenizer's own {self._tokenizer.unk_token!r}\n    remove it from the data"
        )

    def _check_loaded(self) -> None:
        if self._tokenizer is None:
            raise RuntimeError(f"{type(self).__name__}: call load() first")


def read_template(value: str | None) -> str | None:
    """The chat template of a config value: Jinja text, or the content of the file it names."""
    if value is None or "{" in value or "\n" in value:
        return value
    if not os.path.isfile(value):
        raise DataError(
            f"tokenizer.chat_template: no such file: {value}\n    give a file, or the Jinja text itself (it has a '{{')"
        )
    with open(value, encoding="utf-8") as file:
        return file.read()


def _as_messages(prompt: Text | None) -> list[Message]:
    if prompt is None:
        return []
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _unexpressible(backend: Any) -> int | None:
    """The id that stands for bytes without a token, for the byte-level tokenizers that lack some."""
    if backend is None or type(backend.decoder).__name__ != "ByteLevel":
        return None
    unknown = getattr(backend.model, "unk_token", None)
    return backend.token_to_id(unknown) if unknown else None
