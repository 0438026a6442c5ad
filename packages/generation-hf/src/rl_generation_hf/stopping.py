"""When a completion ends: stop tokens, stop strings, or its length."""

from __future__ import annotations

from typing import Any

import numpy as np

# A decoded window may begin inside a character or lose a leading space; this many further tokens
# keep such an artefact away from a match.
_MARGIN_TOKENS = 8


class StopCondition:
    """Decides which rows ended with the token just sampled.

    Args:
        token_ids: tokens that end a completion.
        strings: strings that end it, searched in the text of the completion alone, special tokens included.
        tokenizer: a Hugging Face tokenizer; needed with ``strings``.
    """

    def __init__(self, *, token_ids: tuple[int, ...], strings: tuple[str, ...], tokenizer: Any) -> None:
        self._token_ids = np.asarray(token_ids, np.int64)
        self._strings = strings
        self._tokenizer = tokenizer
        # A match that ends in the newest token spans at most one token per byte.
        longest = max((len(s.encode()) for s in strings), default=0)
        self._window = longest + _MARGIN_TOKENS

    def ended(self, completions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Whether each completion ended with its last token.

        Args:
            completions: int32 [R, max_new_tokens], valid up to ``lengths``.
            lengths: int64 [R], at least 1.

        Returns:
            bool [R].
        """
        last = completions[np.arange(len(lengths)), lengths - 1]
        ended = (last[:, None] == self._token_ids).any(1)
        if self._strings:
            running = np.flatnonzero(~ended)
            tails = [completions[r, max(0, lengths[r] - self._window) : lengths[r]].tolist() for r in running]
            texts = self._tokenizer.batch_decode(tails, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            ended[running] = [any(s in text for s in self._strings) for text in texts]
        return ended
