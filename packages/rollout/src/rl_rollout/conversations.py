"""Conversations: the model takes a turn, the environment answers, until one of them or a limit ends it.

A conversation becomes one sequence. The model's tokens are exactly those it sampled. The environment's messages are
tokenized separately and appended with ``loss_mask`` 0. A conversation depends only on its prompt, its seed and the
weights: which others run at the same time makes no difference (up to floating-point rounding, as for any request).
"""

from __future__ import annotations

import numbers
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.data import Row
from rl_core.contracts.environment import Turn, tools_of
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.tokenizer import Message, Tokenizer
from rl_core.errors import DataError, RLError
from rl_huggingface.chat_options import taken, template_options

from rl_rollout.conversation import Conversation
from rl_rollout.environment_calls import COUNT_INSTEAD, EnvironmentCalls, EnvironmentFailure

if TYPE_CHECKING:
    from rl_core.config.environment import EnvironmentConfig

    from rl_rollout.router import Router


_START_WAIT_S = 0.02
_END_WAIT_S = 5.0


@dataclass(frozen=True)
class FinishedConversations:
    """Finished conversations.

    Attributes:
        batch: as a generator returns it, with further sequence columns ``turns`` (int64, the model's),
            ``environment_tokens`` (int64), ``environment_reward`` (float32) and ``environment_failed`` (bool).
        messages: of each sequence, what was said after the prompt.
        environment_s: seconds in which nothing was generated because environments were busy.
    """

    batch: SequenceBatch
    messages: Sequence[tuple[Message, ...]]
    environment_s: float


class Conversations:
    """Runs requests through an environment; takes the place of the router of single-turn rollouts."""

    def __init__(
        self,
        calls: EnvironmentCalls,
        *,
        config: EnvironmentConfig,
        router: Router,
        tokenizer: Tokenizer,
        max_length: int,
    ) -> None:
        self._calls = calls
        self._config = config
        self._router = router
        self._tokenizer = tokenizer
        self._max_length = max_length
        self.tools = tools_of(calls.environment)

    def sampling(self, sampling: SamplingParams) -> SamplingParams:
        """``sampling`` with the environment's limit for a turn."""
        limit = self._config.max_tokens_per_turn
        return sampling if limit is None else replace(sampling, max_new_tokens=limit)

    def limit_name(self, otherwise: str) -> str:
        """The config field that limits a turn; ``otherwise`` where the environment leaves it alone."""
        return otherwise if self._config.max_tokens_per_turn is None else "environment.max_tokens_per_turn"

    def run(self, requests: SequenceBatch, rows: Sequence[Row], sampling: SamplingParams) -> FinishedConversations:
        """``sampling.n`` conversations per request; ``rows`` has the data row of each request.

        The first turn is sampled like a single-turn completion, so that a conversation of one turn is one; each
        later turn is a request with a seed made of the request's, the sample's number and the turn's.

        Raises:
            RLError: the environment failed and ``on_error`` is ``raise``, or it gave something that is no turn.
        """
        sampling = self.sampling(sampling)
        conversations = self._begin(requests, rows, sampling.n)
        try:
            waited = self._converse(conversations, requests, sampling)
        except BaseException:
            self._calls.wait(self._endings(conversations), at_most_s=_END_WAIT_S, all_of_them=True)
            raise
        self._finish(conversations)
        return FinishedConversations(_to_batch(conversations), [tuple(c.said) for c in conversations], waited)

    def _converse(
        self, conversations: Sequence[Conversation], requests: SequenceBatch, sampling: SamplingParams
    ) -> float:
        """Run all conversations to their end; returns the seconds spent waiting for the environment."""
        waited = 0.0
        pending = self._add_turns(conversations, self._router.generate(requests, sampling))
        while pending:
            began = time.perf_counter()
            ready = self._replies(pending, sampling)
            waited += time.perf_counter() - began
            if ready:
                turns = self._router.generate(_next_requests(ready), replace(sampling, n=1))
                pending |= self._add_turns(ready, turns)
        return waited

    def _begin(self, requests: SequenceBatch, rows: Sequence[Row], n: int) -> list[Conversation]:
        conversations: list[Conversation] = []
        for index in range(len(requests)):
            prompt, seed = requests.tokens[requests.sequence(index)], int(requests.sequence_columns["seed"][index])
            for sample in range(n):
                conversation = Conversation.begin(
                    rows[index], prompt, request=index, sample=sample, seed=seed % 2**64, order=len(conversations)
                )
                conversation.started = self._calls.start(rows[index], conversation.own_seed(), place=conversation.place)
                conversations.append(conversation)
        # A slow start continues while the first turns are generated.
        self._calls.wait([c.started for c in conversations], at_most_s=_START_WAIT_S, all_of_them=True)
        return conversations

    def _add_turns(
        self, conversations: Sequence[Conversation], turns: SequenceBatch
    ) -> dict[Future[Turn], Conversation]:
        """Append each conversation's new turn, and ask the environment to answer; returns the calls."""
        pending = {}
        for index, conversation in enumerate(conversations):
            conversation.add_turn(turns, index, text=self._tokenizer.decode)
            if conversation.cut and self._config.on_long_turn == "end":
                conversation.stop(truncated=True)
            else:
                call = self._calls.step(
                    conversation.started,
                    conversation.messages(),
                    turn=conversation.turns,
                    place=conversation.place,
                )
                pending[call] = conversation
        return pending

    def _replies(self, pending: dict[Future[Turn], Conversation], sampling: SamplingParams) -> list[Conversation]:
        """Wait for the environment; removes answered conversations from ``pending`` and returns those that continue."""
        ready: list[Conversation] = []
        while pending and not ready:
            self._calls.wait(list(pending), at_most_s=None, all_of_them=False)
            self._calls.wait(list(pending), at_most_s=self._config.patience_s, all_of_them=True)
            for call in [call for call in pending if call.done()]:
                conversation = pending.pop(call)
                if self._reply(conversation, call, sampling):
                    ready.append(conversation)
        return sorted(ready, key=lambda c: c.order)

    def _reply(self, conversation: Conversation, call: Future[Turn], sampling: SamplingParams) -> bool:
        """Append the environment's answer; returns whether the model has another turn."""
        try:
            turn = self._checked(call.result(), conversation)
        except EnvironmentFailure:
            if self._config.on_error == "raise":
                raise
            conversation.fail()
            return False
        conversation.reward += float(turn.reward)
        if turn.done or conversation.turns == self._config.max_turns:
            conversation.said += turn.messages
            conversation.stop(truncated=not turn.done)
            return False
        tokens = self._encode(turn.messages, conversation, sampling)
        if conversation.length + len(tokens) + sampling.max_new_tokens > self._max_length:
            conversation.stop(truncated=True)
            return False
        conversation.add_reply(tokens)
        return True

    def _encode(self, messages: Sequence[Message], conversation: Conversation, sampling: SamplingParams) -> np.ndarray:
        """int32 [E]: tokens of ``messages``, each cut to its limit; also appends the messages to the conversation."""
        limit = self._config.max_environment_tokens
        ended = conversation.last_token in sampling.stop_token_ids
        try:
            messages = [{**m, "content": self._tokenizer.shorten(m["content"], limit)} for m in messages]
            conversation.said += messages
            tokens = self._tokenizer.encode_reply(
                messages,
                chat=conversation.chat,
                ended=ended,
                **taken(self._tokenizer.encode_reply, template_options(conversation.row, self.tools)),
            )
        except DataError as error:
            raise DataError(f"{self._calls.name}, {conversation.place}: {error}") from error
        if ended and conversation.chat and len(tokens) and tokens[0] == conversation.last_token:
            tokens = tokens[1:]  # the model ended its turn with what begins the next one, as GLM's <|observation|> does
        if not len(tokens):
            raise RLError(
                f"{self._calls.name} said nothing after turn {conversation.turns} of the conversation of "
                f"{conversation.place}, and did not end it\n    return a Turn with messages, or with done=True"
            )
        return tokens

    def _checked(self, turn: Any, conversation: Conversation) -> Turn:
        """Check a turn: a value that is not a turn stops the run, a reward that is not finite is a failure."""
        where = f"{self._calls.name}, {conversation.place}: step returned"
        if not isinstance(turn, Turn):
            raise RLError(
                f"{where} {type(turn).__name__}, not a Turn\n    return rl_core.contracts.environment.Turn(…)"
            )
        for message in turn.messages:
            parts = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None,)
            if not all(isinstance(part, str) for part in parts):
                raise RLError(
                    f"{where} the message {message!r}\n    a message is {{'role': 'tool', 'content': 'text'}}"
                )
        if not isinstance(turn.reward, numbers.Real):
            raise RLError(f"{where} the reward {turn.reward!r}, which is no number")
        if not np.isfinite(float(turn.reward)):
            raise EnvironmentFailure(f"{where} the reward {turn.reward!r}\n    fix it, {COUNT_INSTEAD}")
        return turn

    def _endings(self, conversations: Sequence[Conversation]) -> list[Future[Any]]:
        return [self._calls.end(c.started, place=c.place) for c in conversations]

    def _finish(self, conversations: Sequence[Conversation]) -> None:
        """Call the environment's ``end`` for all conversations."""
        endings = self._endings(conversations)
        self._calls.wait(endings, at_most_s=None, all_of_them=True)
        for conversation, ending in zip(conversations, endings, strict=True):
            try:
                ending.result()
            except EnvironmentFailure:
                if self._config.on_error == "raise":
                    raise
                conversation.fail()


def _next_requests(conversations: Sequence[Conversation]) -> SequenceBatch:
    seeds = np.array([c.turn_seed() for c in conversations], np.uint64)
    return SequenceBatch.from_lists([c.tokens() for c in conversations], sequence_columns={"seed": seeds})


def _to_batch(conversations: Sequence[Conversation]) -> SequenceBatch:
    return SequenceBatch.from_lists(
        [c.tokens() for c in conversations],
        token_columns={
            "loss_mask": [c.column("loss_mask") for c in conversations],
            "sampled_logprobs": [c.column("sampled_logprobs") for c in conversations],
            "weights_version": [c.column("weights_version") for c in conversations],
        },
        sequence_columns={
            "request": np.array([c.request for c in conversations], np.int64),
            "sample": np.array([c.sample for c in conversations], np.int64),
            "truncated": np.array([c.truncated for c in conversations], bool),
            "prompt_length": np.array([c.prompt_length for c in conversations], np.int64),
            "turns": np.array([c.turns for c in conversations], np.int64),
            "environment_tokens": np.array([c.environment_tokens for c in conversations], np.int64),
            "environment_reward": np.array([c.reward for c in conversations], np.float32),
            "environment_failed": np.array([c.failed for c in conversations], bool),
        },
    )
