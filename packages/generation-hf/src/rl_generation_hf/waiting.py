"""The queue: requests that have not started, and which prompts to read next."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from rl_core.contracts.generation import GenerationRequest

# Limits of one prompt forward besides its tokens: logits, and the share of padding.
_PREFILL_LOGITS = 2**25
_SHORTEST_SHARE = 0.75

Order = tuple[int, int, int, int]


@dataclass(eq=False)
class Prompt:
    """A prompt and those of its completions that wait.

    Attributes:
        tokens: int32 [P].
        order: it starts before prompts of larger ones: priority, submission, cache columns, place in the submission.
        columns: cache columns of each of its completions, P + ``max_new_tokens``.
        size: its completions, waiting or not.
        waiting: those that wait, by sample.
    """

    tokens: np.ndarray
    order: Order
    columns: int
    size: int = 0
    waiting: list[GenerationRequest] = field(default_factory=list)

    @property
    def length(self) -> int:
        """P."""
        return len(self.tokens)


@dataclass(frozen=True)
class Admission:
    """Prompts that are read in one forward and the completions that start from them.

    Attributes:
        prompts: P prompts, longest first.
        source: int64 [R], which of ``prompts`` each new completion starts from.
        requests: R requests.
    """

    prompts: Sequence[Prompt]
    source: np.ndarray
    requests: Sequence[GenerationRequest]


class WaitingQueue:
    """Requests by priority, then by submission; those of one submission start with the longest.

    Prompts of similar length are then read together with little padding, and once the long ones
    are through, the same budget holds more rows. What is submitted together is admitted in an order that
    depends on nothing else: batch shapes, and so rounding, do not depend on timing.

    Args:
        vocab_size: width of the logits.
        prefill_tokens: padded prompt tokens per forward; a longer prompt is read alone.
    """

    def __init__(self, *, vocab_size: int, prefill_tokens: int) -> None:
        self._vocab_size = vocab_size
        self._prefill_tokens = prefill_tokens
        self._prompts: list[Prompt] = []
        self._submissions = 0
        self.count = 0

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts)

    @property
    def first_columns(self) -> int:
        """Cache columns that the next prompt needs; 0 if none waits."""
        return self._prompts[0].columns if self._prompts else 0

    def submit(self, requests: Sequence[GenerationRequest]) -> dict[str, Prompt]:
        """Queue requests; returns the prompt of each id. Those that differ in their sample alone share one."""
        self._submissions += 1
        found: dict[tuple[object, ...], Prompt] = {}
        prompts: dict[str, Prompt] = {}
        for place, request in enumerate(requests):
            most = request.sampling.max_new_tokens
            key = (request.tokens.tobytes(), request.seed, request.priority, most)
            if key not in found:
                columns = len(request.tokens) + most
                order = (-request.priority, self._submissions, -columns, place)
                found[key] = Prompt(request.tokens, order, columns)
            prompt = prompts[request.id] = found[key]
            prompt.size += 1
            prompt.waiting.append(request)
        self._prompts += found.values()
        self._prompts.sort(key=lambda prompt: prompt.order)
        self.count += len(requests)
        return prompts

    def requeue(self, requests: Iterable[tuple[GenerationRequest, Prompt]]) -> None:
        """Let requests that have started wait again."""
        for request, prompt in requests:
            if not prompt.waiting:
                bisect.insort(self._prompts, prompt, key=lambda p: p.order)
            bisect.insort(prompt.waiting, request, key=lambda r: r.sample)
            self.count += 1

    def remove(self, ids: Iterable[str]) -> list[GenerationRequest]:
        """Take out those of these ids that wait."""
        gone = set(ids)
        removed = []
        for prompt in self._prompts:
            removed += [r for r in prompt.waiting if r.id in gone]
            prompt.waiting = [r for r in prompt.waiting if r.id not in gone]
        self._prompts = [prompt for prompt in self._prompts if prompt.waiting]
        self.count -= len(removed)
        return removed

    def ready(self, *, free: int, slots: int) -> bool:
        """Whether to start completions now, with ``free`` of ``slots`` rows empty.

        Reading prompts in small portions is slow, so it waits until a good part of the rows is empty.
        """
        return self.count > 0 and free >= min(self.count, max(1, slots // 4))

    def admit(self, *, free: int, slots: int, columns: int) -> Admission | None:
        """The next prompts to read together and their completions; None if they do not fit.

        A prompt is read once for all its samples, unless ``slots`` cannot hold them together.

        Args:
            free: most completions.
            slots: rows of the cache.
            columns: tokens of each.
        """
        prompts: list[Prompt] = []
        source: list[int] = []
        requests: list[GenerationRequest] = []
        lengths: set[int] = set()
        for prompt in self._candidates(free, columns):
            if not self._reads_well_with(prompts, lengths, prompt):
                break
            rest = len(prompt.waiting)
            taken = min(rest, free - len(requests))
            if taken < (rest if prompt.size <= slots else min(rest, max(1, slots // 4))):
                break
            source += [len(prompts)] * taken
            requests += prompt.waiting[:taken]
            del prompt.waiting[:taken]
            prompts.append(prompt)
            lengths.add(prompt.length)
            if taken < rest:
                break
        if not prompts:
            return None
        self.count -= len(requests)
        started = {id(prompt) for prompt in prompts if not prompt.waiting}
        self._prompts = [prompt for prompt in self._prompts if id(prompt) not in started]
        return Admission(prompts, np.asarray(source), requests)

    def _candidates(self, free: int, columns: int) -> list[Prompt]:
        """The next prompts whose completions fit, longest first, and the one that comes after these."""
        whole: list[Prompt] = []
        for prompt in self._prompts:
            if prompt.columns > columns:
                break  # it waits for a longer cache, and others behind it, or it would never start
            free -= len(prompt.waiting)
            if free < 0:
                return [*_longest_first(whole), prompt]
            whole.append(prompt)
        return _longest_first(whole)

    def _reads_well_with(self, prompts: list[Prompt], lengths: set[int], prompt: Prompt) -> bool:
        """Whether ``prompt`` may join ``prompts`` (longest first) in one forward."""
        if not prompts:
            return True
        longest, rows = prompts[0].length, len(prompts) + 1
        return bool(
            _SHORTEST_SHARE * longest <= prompt.length <= longest
            and rows * longest <= self._prefill_tokens
            and rows * len(lengths | {prompt.length}) * self._vocab_size <= _PREFILL_LOGITS
        )


def _longest_first(prompts: list[Prompt]) -> list[Prompt]:
    return sorted(prompts, key=lambda prompt: -prompt.length)
