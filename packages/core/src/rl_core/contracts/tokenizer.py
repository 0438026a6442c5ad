"""A tokenizer: the one place where text enters and leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from rl_core.contracts.data import Row

Message = Mapping[str, Any]
Text = str | Sequence[Message]
LossOn = Literal["completion", "all"]


class Tokenizer(Protocol):
    """Built as ``factory(config)`` in the driver."""

    def load(self, model_path: str | None, rows: Sequence[Row], *, trust_remote_code: bool = False) -> None:
        """Load from ``model_path``, or build from ``rows`` (a from-scratch model).

        Raises:
            DataError: the folder has no tokenizer, or rows hold characters it cannot express.
        """
        ...

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        ...

    @property
    def special_tokens(self) -> Mapping[str, int | None]:
        """``bos_token_id``, ``eos_token_id``, ``pad_token_id``."""
        ...

    def encode_prompt(self, prompt: Text) -> np.ndarray:
        """int32 [P]: the prompt as the model sees it before it answers (chat template applied to messages)."""
        ...

    def encode_example(self, row: Row, loss_on: LossOn) -> tuple[np.ndarray, np.ndarray]:
        """``(tokens int32 [T], loss_mask float32 [T])`` for ``prompt``+``completion`` or ``messages``.

        The end-of-sequence token closes the completion and is trained on. With
        ``loss_on="completion"`` the mask covers the completion, or the assistant turns.
        """
        ...

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Text without special tokens."""
        ...

    def save(self, directory: str) -> None:
        """Write the tokenizer files of a Hugging Face model folder."""
        ...
