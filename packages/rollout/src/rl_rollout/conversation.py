"""The state of one conversation: its tokens so far, its messages, and whether it ended."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.data import Row
from rl_core.contracts.tokenizer import Message


@dataclass(frozen=True)
class _Segment:
    """Consecutive tokens that the model read (``loss_mask`` 0) or sampled (1); arrays of equal length."""

    tokens: np.ndarray
    loss_mask: np.ndarray
    sampled_logprobs: np.ndarray
    weights_version: np.ndarray

    @classmethod
    def read(cls, tokens: np.ndarray, version: int) -> _Segment:
        size = len(tokens)
        zeros = np.zeros(size, np.float32)
        return cls(tokens, zeros, zeros, np.full(size, version, np.int32))


@dataclass
class Conversation:
    """One conversation of a rollout.

    Attributes:
        row: its data row.
        chat: whether the prompt is made of messages.
        request, sample: which sample of which request it is.
        seed: the request's.
        order: its index among all conversations.
        said: messages after the prompt.
        turns: turns the model has taken.
        reward: sum of the environment's rewards.
        truncated: ended by a limit, or by a failure.
        failed: ended by a failure of the environment.
        cut: the last turn reached its limit of tokens.
        started: the state that the environment gave it.
    """

    row: Row
    chat: bool
    request: int
    sample: int
    seed: int
    order: int
    prompt: np.ndarray
    said: list[Message] = field(default_factory=list)
    turns: int = 0
    environment_tokens: int = 0
    reward: float = 0.0
    truncated: bool = False
    failed: bool = False
    cut: bool = False
    started: Future[Any] = field(default_factory=Future)
    _segments: list[_Segment] = field(default_factory=list)

    @classmethod
    def begin(cls, row: Row, prompt: np.ndarray, *, request: int, sample: int, seed: int, order: int) -> Conversation:
        """Before the first turn; ``prompt`` is int32 [P]."""
        chat = not isinstance(row["prompt"], str)
        return cls(row, chat, request=request, sample=sample, seed=seed, order=order, prompt=prompt)

    @property
    def place(self) -> str:
        """``file:line`` of its row, as far as known."""
        return str(self.row.get("__where__", "a data row"))

    @property
    def prompt_length(self) -> int:
        return len(self.prompt)

    @property
    def length(self) -> int:
        """Tokens so far, the prompt's included."""
        return sum(len(s.tokens) for s in self._segments)

    @property
    def last_token(self) -> int:
        return int(self._segments[-1].tokens[-1])

    def own_seed(self) -> int:
        """The seed of its environment."""
        return _derive(self.seed, self.sample)

    def turn_seed(self) -> int:
        """The seed of the next turn."""
        return _derive(self.seed, self.sample, self.turns)

    def messages(self) -> tuple[Message, ...]:
        """The prompt and everything said since."""
        prompt = self.row["prompt"]
        opening = tuple(prompt) if self.chat else ({"role": "user", "content": prompt},)
        return (*opening, *self.said)

    def tokens(self) -> np.ndarray:
        """int32: the whole sequence so far."""
        return self.column("tokens")

    def column(self, name: str) -> np.ndarray:
        """A token column of the whole sequence so far."""
        return np.concatenate([getattr(s, name) for s in self._segments])

    def add_turn(self, answers: SequenceBatch, index: int, *, text: Callable[[np.ndarray], str]) -> None:
        """Append what the generator sampled after the tokens so far: row ``index`` of ``answers``."""
        where = answers.sequence(index)
        known = int(answers.sequence_columns["prompt_length"][index])
        columns = answers.token_columns
        tokens, versions = answers.tokens[where][known:], columns["weights_version"][where][known:]
        if not self._segments:
            self._segments.append(_Segment.read(self.prompt, int(versions[0])))
        written = np.ones(len(tokens), np.float32)
        self._segments.append(_Segment(tokens, written, columns["sampled_logprobs"][where][known:], versions))
        self.said.append({"role": "assistant", "content": text(tokens)})
        self.turns += 1
        self.cut = bool(answers.sequence_columns["truncated"][index])

    def add_reply(self, tokens: np.ndarray) -> None:
        """Append what the environment said."""
        version = int(self._segments[-1].weights_version[-1])
        self._segments.append(_Segment.read(tokens.astype(np.int32, copy=False), version))
        self.environment_tokens += len(tokens)

    def stop(self, *, truncated: bool) -> None:
        """End it."""
        self.truncated = truncated

    def fail(self) -> None:
        """End it because the environment failed."""
        self.failed = self.truncated = True


def _derive(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
