"""The worker process: ``python -m rl_reward_math.worker``, one JSON line in, one JSON line out.

It ends when its input does, so it does not outlive the process that started it. Nothing but replies
reaches its output: what libraries print is discarded.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Callable

    from rl_reward_math.verdict import Question, Verdict

_GRACE_S = 2.0


def main() -> None:
    """Read options, get ready, then answer questions until the input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--timeout-s", type=float, required=True)
    parser.add_argument("--memory-mb", type=int)
    parser.add_argument("--float-rounding", type=int)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default action ends the process, whatever it is doing
    replies = _private_output()
    if options.memory_mb:
        _limit_memory(options.memory_mb)
    judge = _ready(options.float_rounding)
    _reply(replies, {"ready": True})
    _answer(sys.stdin.buffer, replies, judge, timeout_s=options.timeout_s)


def _answer(questions: BinaryIO, replies: BinaryIO, judge: Callable[[Question], Verdict], *, timeout_s: float) -> None:
    from rl_reward_math.verdict import Question

    for line in questions:
        # Who asked keeps the deadline; this one is for when that process is no longer there to do it.
        signal.setitimer(signal.ITIMER_REAL, timeout_s + _GRACE_S)
        verdict = judge(Question(**json.loads(line)))
        signal.setitimer(signal.ITIMER_REAL, 0)
        _reply(replies, {"verdict": verdict.value})


def _ready(float_rounding: int | None) -> Callable[[Question], Verdict]:
    """Import what takes long and judge once, so that the first deadline covers a verdict and nothing else."""
    logging.disable(logging.CRITICAL)
    from rl_reward_math.judge import judge
    from rl_reward_math.verdict import Question

    judge(Question(gold=r"\frac{1}{2}", answer="1-x"), float_rounding=float_rounding)
    judge(Question(gold="72", answer=None, completion="The answer is $70+3$."), float_rounding=float_rounding)
    return lambda question: judge(question, float_rounding=float_rounding)


def _private_output() -> BinaryIO:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return replies


def _limit_memory(megabytes: int) -> None:
    # Elsewhere the address space of a process says nothing about the memory it uses.
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


def _reply(replies: BinaryIO, message: dict[str, object]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    main()
