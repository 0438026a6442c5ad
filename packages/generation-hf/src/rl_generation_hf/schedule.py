"""The scheduler: which prompts to prefill next, and how many completions run at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Limits of one prompt forward besides its tokens: logits, and the share of padding.
_PREFILL_LOGITS = 2**25
_SHORTEST_SHARE = 0.75


@dataclass(frozen=True)
class Admission:
    """Prompts that are read in one forward and the completions that start from them.

    Attributes:
        prompts: int64 [P], request indices, longest first.
        source: int64 [R], which of ``prompts`` each new completion starts from.
        samples: int64 [R], sample index of each new completion.
    """

    prompts: np.ndarray
    source: np.ndarray
    samples: np.ndarray


class Schedule:
    """Waiting completions, longest prompt first.

    Prompts of similar length are then read together with little padding, and once the long ones
    are through, the same budget holds more rows.

    Args:
        lengths: int64 [B], tokens per prompt.
        n: completions per prompt.
        max_new_tokens: room each completion needs after its prompt.
        budget: tokens of key/value cache.
        vocab_size: width of the logits.
        prefill_tokens: padded prompt tokens per forward; a longer prompt is read alone.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        n: int,
        max_new_tokens: int,
        budget: int,
        vocab_size: int,
        prefill_tokens: int,
    ) -> None:
        self._lengths = lengths
        self._n = n
        self._max_new_tokens = max_new_tokens
        self._budget = budget
        self._vocab_size = vocab_size
        self._prefill_tokens = prefill_tokens
        self._prompts = np.zeros(0, np.int64)  # of the completions that wait, in their order
        self._samples = np.zeros(0, np.int64)
        self._next = 0  # into both
        self.requeue(np.repeat(np.arange(len(lengths)), n), np.tile(np.arange(n), len(lengths)))

    @property
    def waiting(self) -> int:
        """Completions that have not started."""
        return len(self._prompts) - self._next

    def requeue(self, prompts: np.ndarray, samples: np.ndarray) -> None:
        """Let completions wait (again); int64 [R] each."""
        prompts = np.concatenate([self._prompts[self._next :], prompts])
        samples = np.concatenate([self._samples[self._next :], samples])
        order = np.lexsort((samples, prompts, -self._lengths[prompts]))
        self._prompts, self._samples, self._next = prompts[order], samples[order], 0

    def columns(self) -> int:
        """Cache columns that every waiting completion fits in; 0 if none waits."""
        if not self.waiting:
            return 0
        return int(self._lengths[self._prompts[self._next]]) + self._max_new_tokens

    def slots(self, columns: int, running: int) -> int:
        """Rows of ``columns`` the budget allows, no more than there are completions and at least 1."""
        return max(1, min(self._budget // columns, self.waiting + running))

    def ready(self, *, free: int, slots: int) -> bool:
        """Whether to start completions now, with ``free`` of ``slots`` rows empty.

        Reading prompts in small portions is slow, so it waits until a good part of the rows is empty.
        """
        return self.waiting > 0 and free >= min(self.waiting, max(1, slots // 4))

    def admit(self, *, free: int, slots: int) -> Admission | None:
        """The next prompts to read together and their completions, at most ``free``; None if they do not fit.

        A prompt is read once for all its samples, unless ``slots`` cannot hold them together.
        """
        prompts: list[int] = []
        source: list[int] = []
        samples: list[int] = []
        while self.waiting and self._reads_well_with(prompts):
            prompt = int(self._prompts[self._next])
            rest = int((self._prompts[self._next : self._next + self._n] == prompt).sum())
            taken = min(rest, free - len(samples))
            if taken < (rest if self._n <= slots else min(rest, max(1, slots // 4))):
                break
            source += [len(prompts)] * taken
            samples += self._samples[self._next : self._next + taken].tolist()
            prompts.append(prompt)
            self._next += taken
            if taken < rest:
                break
        if not prompts:
            return None
        return Admission(np.asarray(prompts), np.asarray(source), np.asarray(samples))

    def _reads_well_with(self, prompts: list[int]) -> bool:
        """Whether the next prompt may join ``prompts`` (longest first) in one forward."""
        if not prompts:
            return True
        longest, length = self._lengths[prompts[0]], self._lengths[self._prompts[self._next]]
        kinds = len(np.unique(self._lengths[prompts])) + 1 if length != longest else 1
        rows = len(prompts) + 1
        return bool(
            length >= _SHORTEST_SHARE * longest
            and rows * longest <= self._prefill_tokens
            and rows * kinds * self._vocab_size <= _PREFILL_LOGITS
        )
