"""The tokenizer every component of this package is, whatever way it was obtained.

Prompt and completion are tokenized separately and joined, so that a prompt's tokens are the same
in training and in rollouts. (Tokenizers that put a space in front of every text, such as Llama 2's,
therefore see one in front of the completion.)
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

from rl_data_text.config import TextTokenizerConfig
from rl_data_text.tokenizers.chat import Segment, render, reply, segments
from rl_data_text.tokenizers.ends import end_token_ids, never_sampled, turn_end, without_ends


class TextTokenizer(ABC):
    """Implements :class:`rl_core.contracts.tokenizer.Tokenizer` around a Hugging Face tokenizer."""

    def __init__(self, config: TextTokenizerConfig) -> None:
        self.config = config
        self._tokenizer: Any = None
        self._backend: Any = None
        self._unknown: int | None = None
        self._prefix: list[int] = []
        self._eos = -1
        self._size = 0
        self._turn_end = -1
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
        closing = turn_end(tokenizer)
        self._turn_end = self._eos if closing is None else closing
        self._ends = end_token_ids(tokenizer, folder, size=self._size)
        self._never = never_sampled(tokenizer, self._ends, size=self._size)
        names = (tokenizer.bos_token_id, tokenizer.pad_token_id)
        self._meaningless = frozenset({*self._never, *(i for i in names if i is not None)} - {*self._ends})

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

    def encode_prompt(self, prompt: Text, *, tools: Sequence[Mapping[str, Any]] = ()) -> np.ndarray:
        """int32 [P]: text behind the tokenizer's opening token if it has one; messages through the chat template.

        Raises:
            DataError: a character the tokenizer cannot express, or a chat template that is missing or refuses.
        """
        self._check_loaded()
        return np.array(self._prompt_ids(prompt, tools), np.int32)

    def encode_reply(self, messages: Sequence[Message], *, chat: bool, ended: bool) -> np.ndarray:
        """int32 [E]: the tokens between the end of a model's turn and the beginning of its next one.

        Text prompts are continued with the messages' contents alone; chat prompts with what the template puts after
        an assistant's text, less the end token where the model wrote it itself (``ended``).

        Raises:
            DataError: a character the tokenizer cannot express, or a chat template that is missing, refuses the
                messages, or changes what the assistant wrote.
        """
        self._check_loaded()
        if not chat:
            return np.array(self._encode("".join(str(m["content"]) for m in messages)), np.int32)
        tokens = self._encode(reply(self._tokenizer, messages))
        return np.array(tokens[1:] if ended and tokens and tokens[0] in self._ends else tokens, np.int32)

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
        self._tokenizer.save_pretrained(directory)

    def _example(self, row: Row) -> tuple[list[int], list[int]]:
        prompt, completion = row.get("prompt"), row.get("completion")
        if isinstance(completion, str):
            ids = self._prompt_ids(prompt if prompt is not None else "")
            end = self._turn_end if isinstance(prompt, list | tuple) else self._eos
            trained = [*self._encode(completion), end]
            return ids + trained, [0] * len(ids) + [1] * len(trained)
        if completion is not None:
            given = _as_messages(prompt)
            return self._conversation([*given, *completion], given=len(given))
        if row.get("messages") is not None:
            return self._conversation(row["messages"], given=0)
        columns = ", ".join(name for name in row if not name.startswith("__"))
        raise DataError(
            f"there is no 'completion' and no 'messages' (columns: {columns})\n"
            "    map one in the data section, e.g. completion: answer"
        )

    def _conversation(self, messages: Sequence[Message], *, given: int) -> tuple[list[int], list[int]]:
        return self._join(segments(self._tokenizer, messages, given=given), messages[-1].get("role") == "assistant")

    def _join(self, parts: Sequence[Segment], ends_with_answer: bool) -> tuple[list[int], list[int]]:
        """Tokenize each part; every trained one is masked up to its end token."""
        tokens: list[int] = []
        mask: list[int] = []
        open_turn = False
        for part in parts:
            ids = self._encode(part.text)
            tokens += ids
            if part.trained:
                mask += _up_to_last(ids, self._eos)
            else:
                closes = open_turn and ids[:1] == [self._eos]
                mask += [int(closes), *[0] * (len(ids) - 1)] if ids else []
            open_turn = part.trained and self._eos not in ids
        if 1 not in mask:
            raise DataError("the assistant's messages are empty")
        if ends_with_answer:
            last = len(mask) - mask[::-1].index(1)
            if tokens[last - 1] != self._eos:
                tokens, mask = [*tokens[:last], self._eos], [*mask[:last], 1]
        return tokens, mask

    def _prompt_ids(self, prompt: Text, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        if isinstance(prompt, str):
            return self._prefix + self._encode(prompt) if prompt else list(self._prefix)
        return self._encode(render(self._tokenizer, prompt, ask=True, tools=tools))

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


def _up_to_last(ids: list[int], end: int) -> list[int]:
    """A mask of ones up to the last ``end``, or everywhere if there is none."""
    if end not in ids:
        return [1] * len(ids)
    trained = len(ids) - ids[::-1].index(end)
    return [1] * trained + [0] * (len(ids) - trained)


def _unexpressible(backend: Any) -> int | None:
    """The id that stands for bytes without a token, for the byte-level tokenizers that lack some."""
    if backend is None or type(backend.decoder).__name__ != "ByteLevel":
        return None
    unknown = getattr(backend.model, "unk_token", None)
    return backend.token_to_id(unknown) if unknown else None
