"""A tokenizer of single characters without dependencies, for suites of components that are given one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rl_core.contracts.data import Row
from rl_core.contracts.tokenizer import LossOn, Message, Text
from rl_core.errors import DataError

ALPHABET = "0123456789+=. abcdefghijklmnopqrstuvwxyz"
EOS = 1


class LetterTokenizer:
    """Ids 0 and 1 are padding and end of sequence; then the characters of :data:`ALPHABET`, in order."""

    vocab_size = 2 + len(ALPHABET)

    @property
    def special_tokens(self) -> Mapping[str, int | None]:
        return {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": 0}

    def load(self, model_path: str | None, rows: Sequence[Row], *, trust_remote_code: bool = False) -> None:
        """Nothing to load: the alphabet is fixed."""

    def encode_prompt(
        self,
        prompt: Text,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        text = prompt if isinstance(prompt, str) else "".join(str(message["content"]) for message in prompt)
        return np.array([2 + ALPHABET.index(one) for one in text.lower() if one in ALPHABET], np.int32)

    def encode_reply(
        self,
        messages: Sequence[Message],
        *,
        chat: bool,
        ended: bool,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        return self.encode_prompt(messages)

    def shorten(self, text: str, max_tokens: int) -> str:
        return self.decode(self.encode_prompt(text)[:max_tokens])

    def encode_example(self, row: Row, loss_on: LossOn) -> tuple[np.ndarray, np.ndarray]:
        prompt, completion = row.get("prompt"), row.get("completion")
        if prompt is None or completion is None:
            raise DataError(f"{row.get('__where__', 'a row')}: there is no prompt with a completion")
        before, after = self.encode_prompt(prompt), self.encode_prompt(completion)
        tokens = np.concatenate([before, after, [EOS]]).astype(np.int32)
        mask = np.ones(len(tokens), np.float32)
        if loss_on == "completion":
            mask[: len(before)] = 0
        return tokens, mask

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        return "".join(ALPHABET[int(one) - 2] for one in tokens if int(one) >= 2)

    def save(self, directory: str) -> None:
        """What there is to know: Hugging Face has no tokenizer of this kind."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        about = {"alphabet": ALPHABET, **self.special_tokens}
        (Path(directory) / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
