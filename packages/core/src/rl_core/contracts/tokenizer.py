"""A tokenizer: converts text to tokens and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from rl_core.contracts.data import Row

Message = Mapping[str, Any]
Text = str | Sequence[Message]
LossOn = Literal["completion", "all"]


class Tokenizer(Protocol):
    """Built as ``factory(config)`` in the driver. An instance may also have

    - ``end_token_ids``: a tuple of ids, the end-of-sequence token first. A completion ends at any of them and includes
      it; it is trained on. Default: the end-of-sequence token alone.
    - ``never_sampled``: a tuple of ids below ``vocab_size`` without a meaning in text (padding, fillers). Generators do
      not sample them. Default: none. Ids from ``vocab_size`` on, which a model's embedding may have, are never sampled.
    """

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

    def encode_prompt(
        self,
        prompt: Text,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """int32 [P]: the prompt as the model sees it before it answers (chat template applied to messages).

        A last message of the assistant's is continued: the prompt ends with its text.

        Args:
            tools: JSON schemas of functions for the chat template, the environment's and the row's; a text prompt
                ignores them. Only given if there are any.
            template_kwargs: the row's variables for the chat template. Only given if there are any.
        """
        ...

    def encode_reply(
        self,
        messages: Sequence[Message],
        *,
        chat: bool,
        ended: bool,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> np.ndarray:
        """int32 [E]: the tokens between the end of the model's turn and the beginning of its next one.

        Only called with an environment. The tokens of the turn itself are kept as they were sampled.

        Args:
            messages: the environment's messages.
            chat: whether the prompt is made of messages. Then the tokens are those that the chat template puts
                after an assistant's text, around ``messages``, and where the assistant begins again. Else they
                are those of the messages' contents, one after the other, and nothing else.
            ended: whether the turn ended with an end token, which is then not added.
            tools, template_kwargs: what the prompt was encoded with; only given where there are some.
        """
        ...

    def shorten(self, text: str, max_tokens: int) -> str:
        """``text``, cut at its end where it has more than ``max_tokens`` tokens."""
        ...

    def encode_example(self, row: Row, loss_on: LossOn) -> tuple[np.ndarray, np.ndarray]:
        """``(tokens int32 [T], loss_mask float32 [T])`` for ``prompt``+``completion`` or ``messages``.

        An end token closes the completion and is trained on. With ``loss_on="completion"`` the mask covers the
        completion, or the assistant turns. The row's columns ``tools`` and ``chat_template_kwargs`` go to the
        chat template.
        """
        ...

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Text, without the opening token, padding, and the end tokens at its end.

        Special tokens that carry meaning (the tags of a tool call or a thought) are kept as text.
        """
        ...

    def save(self, directory: str) -> None:
        """Write the tokenizer files of a Hugging Face model folder."""
        ...


def end_token_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens at which a completion ends; empty where the tokenizer has no end token."""
    ends = getattr(tokenizer, "end_token_ids", None)
    if ends is None:
        ends = (tokenizer.special_tokens.get("eos_token_id"),)
    return tuple(dict.fromkeys(int(end) for end in ends if end is not None))


def never_sampled(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of the tokenizer that no generator samples, ascending."""
    return tuple(sorted({int(i) for i in getattr(tokenizer, "never_sampled", ())}))
