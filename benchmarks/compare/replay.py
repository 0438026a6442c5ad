"""Completions that another system sampled, so that two systems can be compared on the same ones."""

from __future__ import annotations

from collections.abc import Callable

from compare.workloads import EOS, read_rows


class Replay:
    """Hands out recorded completions by prompt, each once.

    Args:
        samples: JSON lines with ``prompt`` and ``completion``, as in a run's ``samples.jsonl``.
        encode: text to token ids.
        max_tokens: a completion of fewer tokens has ended, so the end token belongs to it.
    """

    def __init__(self, samples: str, encode: Callable[[str], list[int]], *, max_tokens: int) -> None:
        self._waiting: dict[str, list[list[int]]] = {}
        for row in read_rows(samples):
            ids = list(encode(row["completion"]))
            self._waiting.setdefault(row["prompt"], []).append([*ids, EOS] if len(ids) < max_tokens else ids)

    def take(self, prompt: str) -> list[int]:
        """The next completion to ``prompt``, end token included."""
        return self._waiting[prompt].pop(0)
