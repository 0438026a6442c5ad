"""The running completions, in the order of their cache slots, and what they have produced."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from rl_core.contracts.generation import Completion, GenerationRequest, Sampling

from rl_generation_hf.philox import uniforms
from rl_generation_hf.sampling import Shape
from rl_generation_hf.stopping import StopCondition
from rl_generation_hf.waiting import Admission, Prompt

_BY_SLOT = ("position", "token", "length", "limit", "kind")
_BY_TOKEN = ("tokens", "logprobs", "versions", "uniforms")


@dataclass(eq=False)
class Row:
    """What of a running completion is not in arrays.

    Attributes:
        kind: of its sampling, see :class:`Kind`.
        top: one (tokens int32 [K], log-probs float32 [K]) per sampled token, where it wants them.
        columns: further ones of its completion.
    """

    request: GenerationRequest
    prompt: Prompt
    kind: Kind
    top: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    columns: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Kind:
    """A way to sample that many rows share: all of a request's sampling but its longest length."""

    number: int
    shape: Shape
    stop: StopCondition


class Rows:
    """Rows 0 to ``count`` run; arrays have room for ``slots``.

    Attributes:
        position: int64 [slots], column of the token to be read next.
        token: int64 [slots], that token.
        length: int64 [slots], tokens sampled so far.
        limit: int64 [slots], most tokens.
        kind: int64 [slots], number of the row's kind.
        tokens, logprobs, versions: int32, float32, int32 [slots, width], valid up to ``length``.
        uniforms: float64 [slots, width], one for each token; 0 at temperature 0.
        any_top: whether some row, since nothing ran, wants the most likely tokens.
    """

    def __init__(self) -> None:
        self.count = 0
        self.slots = 0
        self.any_top = False
        self.rows: list[Row] = []
        self.position = np.zeros(0, np.int64)
        self.token = np.zeros(0, np.int64)
        self.length = np.zeros(0, np.int64)
        self.limit = np.zeros(0, np.int64)
        self.kind = np.zeros(0, np.int64)
        self.tokens = np.zeros((0, 0), np.int32)
        self.logprobs = np.zeros((0, 0), np.float32)
        self.versions = np.zeros((0, 0), np.int32)
        self.uniforms = np.zeros((0, 0))

    @property
    def seen(self) -> int:
        """Columns of the cache that are filled."""
        return int(self.position[: self.count].max(initial=0))

    @property
    def columns(self) -> int:
        """Columns that may yet be filled."""
        running = slice(0, self.count)
        # The token sampled last is not in the cache yet.
        prompts = self.position[running] - self.length[running] + 1
        return int((prompts + self.limit[running]).max(initial=0))

    def allow(self, slots: int) -> None:
        """Let ``slots`` rows run, no fewer than do."""
        self.slots = slots
        self._reserve(slots, 0)

    def _reserve(self, slots: int, width: int) -> None:
        """Arrays of ``slots`` rows of ``width`` tokens, or more."""
        slots, width = max(slots, len(self.position)), max(width, self.tokens.shape[1])
        if (slots, width) == self.tokens.shape:
            return
        for name in _BY_SLOT:
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros(slots - len(old), old.dtype)]))
        for name in _BY_TOKEN:
            old = getattr(self, name)
            new = np.zeros((slots, width), old.dtype)
            new[: self.count, : old.shape[1]] = old[: self.count]
            setattr(self, name, new)

    def clear(self) -> None:
        """Nothing runs, and no memory is held."""
        self.__init__()  # type: ignore[misc]

    def add(self, admission: Admission, kinds: list[Kind]) -> slice:
        """Rows for new completions, after the running ones; their rows."""
        requests = admission.requests
        lengths = np.array([prompt.length for prompt in admission.prompts])
        new = slice(self.count, self.count + len(requests))
        limits = np.array([request.sampling.max_new_tokens for request in requests])
        self._reserve(0, int(limits.max()))
        self.position[new] = lengths[admission.source]
        self.length[new] = 0
        self.limit[new] = limits
        self.kind[new] = [kind.number for kind in kinds]
        drawn = np.array([request.sampling.temperature > 0 for request in requests])
        if drawn.any():
            seeds = np.array([request.seed & (2**64 - 1) for request in requests], np.uint64)
            samples = np.array([request.sample for request in requests])
            most = int(limits[drawn].max())
            self.uniforms[np.flatnonzero(drawn) + self.count, :most] = uniforms(seeds[drawn], samples[drawn], most)
        prompts = [admission.prompts[i] for i in admission.source]
        self.any_top |= any("top_logprobs" in request.want for request in requests)
        self.rows += [Row(*parts) for parts in zip(requests, prompts, kinds, strict=True)]
        self.count = new.stop
        return new

    def write(self, rows: slice, tokens: np.ndarray, logprobs: np.ndarray, version: int) -> None:
        """Add one token to each of some rows."""
        at, places = self.length[rows], np.arange(rows.start, rows.stop)
        self.token[rows] = tokens
        self.tokens[places, at] = tokens
        self.logprobs[places, at] = logprobs
        self.versions[places, at] = version
        self.length[rows] = at + 1

    def completion(self, row: int, finish: Literal["stop", "length", "abort"]) -> Completion:
        """Of one row, as far as it is."""
        state, length = self.rows[row], int(self.length[row])
        columns = state.columns
        if state.top:
            columns = columns | {
                "top_tokens": np.stack([tokens for tokens, _ in state.top]),
                "top_logprobs": np.stack([logprobs for _, logprobs in state.top]),
            }
        return Completion(
            id=state.request.id,
            tokens=self.tokens[row, :length].copy(),
            logprobs=self.logprobs[row, :length].copy(),
            weights_version=self.versions[row, :length].copy(),
            finish=finish,
            columns=columns,
        )

    def drop(self, finished: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Close the gaps that ``finished`` rows (bool [count]) leave with rows from the end.

        Returns:
            int64 [M] each: the rows that have moved, and where to.
        """
        kept = self.count - int(finished.sum())
        target = np.flatnonzero(finished[:kept])
        source = np.flatnonzero(~finished[kept:]) + kept
        for name in (*_BY_SLOT, *_BY_TOKEN):
            array = getattr(self, name)
            array[target] = array[source]
        for there, here in zip(target.tolist(), source.tolist(), strict=True):
            self.rows[there] = self.rows[here]
        del self.rows[kept:]
        self.count = kept
        return source, target


class Kinds:
    """The different ways to sample of a generator's requests, each known once."""

    def __init__(self, tokenizer: object) -> None:
        self._tokenizer = tokenizer
        self._known: dict[tuple[object, ...], Kind] = {}
        self._list: list[Kind] = []

    def __getitem__(self, number: int) -> Kind:
        return self._list[number]

    def of(self, sampling: Sampling) -> Kind:
        """The kind of a request's sampling."""
        key = (sampling.temperature, sampling.top_p, sampling.top_k, sampling.stop, sampling.stop_token_ids)
        if (kind := self._known.get(key)) is None:
            stop = StopCondition(token_ids=sampling.stop_token_ids, strings=sampling.stop, tokenizer=self._tokenizer)
            shape = Shape(sampling.temperature, sampling.top_p, sampling.top_k)
            kind = self._known[key] = Kind(len(self._list), shape, stop)
            self._list.append(kind)
        return kind

    def clear(self) -> None:
        """Forget them; none may be in use."""
        self._known.clear()
        self._list.clear()
