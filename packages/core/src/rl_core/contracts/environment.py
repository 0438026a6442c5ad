"""An environment: answers the model's turns until the conversation is over."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rl_core.contracts.data import Row
from rl_core.contracts.tokenizer import Message


@dataclass(frozen=True)
class Turn:
    """The answer of an environment to a model turn.

    Attributes:
        messages: appended to the conversation, at least one unless ``done``; their tokens are masked out of the
            loss. A message is ``{"role": …, "content": text}``. Messages of the last turn (``done``) go to the sample
            log and to rewards. They are not tokenized, because the model never reads them.
        done: no further model turn follows.
        reward: added to the sample's reward; those of all turns add up.
    """

    messages: Sequence[Message] = ()
    done: bool = True
    reward: float = 0.0


class CallFailed(Exception):
    """Raised by an environment that runs code elsewhere if the call failed there; ``on_error`` decides what follows.

    Args:
        what: what the code did; follows the environment's name in messages, e.g. ``ended its process (exit code 3)``.
        detail: follows the call's name, e.g. ``: no such move (game.py:12)``.
    """

    def __init__(self, what: str, detail: str = "") -> None:
        super().__init__(f"{what}{detail}")
        self.what = what
        self.detail = detail


class Environment(Protocol):
    """Built as ``factory(config)`` in the driver; one instance serves many conversations at once.

    Its config derives from :class:`rl_core.config.environment.EnvironmentConfig`, which limits a conversation.

    ``start`` returns the state of one conversation; the instance holds none. Every method may be a coroutine function.
    Coroutines share one event loop for the whole stage. Plain methods run in threads, concurrently for different
    conversations, and cannot be stopped. (The environment ``python`` runs a user's class with plain methods in
    processes.) An instance may also have

    - ``tools``: a sequence of JSON schemas of functions, given to the chat template of the prompt
      (``{"type": "function", "function": {"name", "description", "parameters"}}``);
    - ``keeps_deadlines = True``: its coroutines enforce ``step_timeout_s`` themselves, counted without the wait for a
      free process, and raise ``TimeoutError``. For other failures of code that runs elsewhere they raise
      :class:`CallFailed`;
    - ``end(state)``: called once for every conversation that was started, however it ended (in a thread, a step that
      took too long may still be running);
    - ``close()``: called when the stage ends, never a coroutine.

    ``DataError`` and ``ConfigError`` stop the run with their message; for any other exception, and for a call that
    takes longer than ``step_timeout_s``, the config says what happens (``on_error``).
    """

    def start(self, row: Row, seed: int) -> Any | Awaitable[Any]:
        """State for one conversation.

        Args:
            row: the data row with all its columns. The prompt is the row's own.
            seed: of this conversation (0 to 2**64 - 1). Derive all randomness from it, so that a resumed run repeats
                it.
        """
        ...

    def step(self, state: Any, conversation: Sequence[Message]) -> Turn | Awaitable[Turn]:
        """Answer the model's last message, ``conversation[-1]``.

        Args:
            state: what ``start`` returned; it may be changed in place.
            conversation: the prompt (a text prompt as one user message) and everything said since.
        """
        ...


def tools_of(environment: Environment) -> tuple[Mapping[str, Any], ...]:
    """The JSON schemas of an environment's functions; empty if it has none."""
    return tuple(getattr(environment, "tools", ()))
