"""Conformance rules for environments (:mod:`rl_core.contracts.environment`)."""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from rl_core.contracts.data import Row
from rl_core.contracts.environment import Environment, Turn

from rl_plugin_kit.rows import questions
from rl_plugin_kit.suites.base import ComponentConformance

SEED = 11


class EnvironmentConformance(ComponentConformance):
    """Attributes:
    rows: of which each starts a conversation; at least two.
    replies: what the model says, one after the other; then the row's ``answer``.
    most_turns: model turns that are taken, where the environment does not end the conversation before.
    """

    kind = "environment"
    contracts = (Environment,)
    optional = ("end", "close")
    rows: ClassVar[Sequence[Row]] = tuple(questions(4))
    replies: ClassVar[Sequence[str]] = ("3", "", "I do not know.")
    most_turns: ClassVar[int] = 5

    def test_a_turn_has_messages_and_a_finite_reward(self) -> None:
        for turn in self._turns(self.build(), self.rows[0]):
            self.expect(isinstance(turn, Turn), f"step returned {type(turn).__name__}, not a Turn")
            self.expect(math.isfinite(turn.reward), f"step returned the reward {turn.reward}")
            self.expect(isinstance(turn.done, bool), f"step returned done={turn.done!r}")
            for message in turn.messages:
                self.expect(
                    isinstance(message.get("role"), str) and "content" in message,
                    f"step returned a message without role and content: {message}",
                )
                self.expect(message["role"] != "assistant", f"step speaks for the model: {message}")

    def test_a_seed_repeats_a_conversation(self) -> None:
        first, second = (self._turns(self.build(), self.rows[0]) for _ in range(2))
        self.expect(repr(first) == repr(second), "one seed gives two conversations; draw whatever is random from it")

    def test_the_conversation_is_not_changed(self) -> None:
        environment = self.build()
        conversation = [*self._opening(self.rows[0]), {"role": "assistant", "content": self.replies[0]}]
        before = copy.deepcopy(conversation)
        answered(environment.step(answered(environment.start(self.rows[0], SEED)), conversation))
        self.expect(conversation == before, "step changed the conversation it was given; it returns its messages")

    def test_conversations_do_not_influence_each_other(self) -> None:
        alone = [self._turns(self.build(), row) for row in self.rows[:2]]
        environment = self.build()
        talks: list[Any] = [[answered(environment.start(row, SEED)), self._opening(row), []] for row in self.rows[:2]]
        for number in range(self.most_turns):
            for row, (state, conversation, turns) in zip(self.rows, talks, strict=False):
                if not turns or not turns[-1].done:
                    turns.append(self._step(environment, state, conversation, self._reply(row, number)))
        for index, (_, _, turns) in enumerate(talks):
            self.expect(
                repr(turns) == repr(alone[index]),
                f"conversation {index} goes differently while another one runs; state belongs into what start returns",
            )

    def _turns(self, environment: Environment, row: Row) -> list[Turn]:
        state, conversation = answered(environment.start(row, SEED)), self._opening(row)
        turns: list[Turn] = []
        while len(turns) < self.most_turns and not (turns and turns[-1].done):
            turns.append(self._step(environment, state, conversation, self._reply(row, len(turns))))
        return turns

    def _reply(self, row: Row, number: int) -> str:
        return self.replies[number] if number < len(self.replies) else str(row.get("answer", self.replies[-1]))

    def _step(self, environment: Environment, state: Any, conversation: list[Any], reply: str) -> Turn:
        conversation.append({"role": "assistant", "content": reply})
        turn: Turn = answered(environment.step(state, list(conversation)))
        conversation.extend(turn.messages)
        return turn

    def _opening(self, row: Row) -> list[Any]:
        prompt = row["prompt"]
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def answered(value: Any) -> Any:
    """The value of a coroutine, or what a plain method returned."""
    return asyncio.run(_wait(value)) if inspect.isawaitable(value) else value


async def _wait(value: Any) -> Any:
    return await value
