"""Transcripts of the HH-RLHF data: two whole dialogues in one text each, which share everything but the last answer.

A turn begins with a blank line and its speaker, ``\\n\\nHuman:`` or ``\\n\\nAssistant:`` (Bai et al. 2022,
https://arxiv.org/abs/2204.05862).
"""

from __future__ import annotations

import re
from typing import Any

from rl_data_text.sources.columns import BadRow, kind_of

ASSISTANT = "\n\nAssistant:"
"""Where an answer begins."""

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def looks_like_transcript(text: Any) -> bool:
    """Whether ``text`` is one of these transcripts rather than a completion."""
    return isinstance(text, str) and text.startswith("\n\nHuman:") and ASSISTANT in text


def split_transcripts(chosen: Any, rejected: Any) -> tuple[str, str, str]:
    """``(prompt, chosen, rejected)``; ``prompt + chosen`` and ``prompt + rejected`` are the transcripts, to the letter.

    The prompt ends with the last ``Assistant:`` in front of the first difference, so a completion
    begins with the space that the transcripts have there.

    Raises:
        BadRow: not two texts, the same text twice, no shared ``Assistant:``, an empty answer, or
            answers with further turns behind them (the dialogues part before their last answer).
    """
    for key, text in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(text, str):
            raise BadRow(f"{key!r} is {kind_of(text)}, not a transcript")
    start = _last_shared_turn(chosen, rejected)
    prompt, answers = chosen[:start], (chosen[start:], rejected[start:])
    if answers[0].strip() == answers[1].strip():
        raise BadRow("'chosen' and 'rejected' have the same answer")
    for key, answer in zip(("chosen", "rejected"), answers, strict=True):
        if not answer.strip():
            raise BadRow(f"the last answer of {key!r} is empty")
        if _TURN.search(answer):
            raise BadRow(f"'chosen' and 'rejected' differ before the last answer: {key!r} has further turns after it")
    return prompt, *answers


def _last_shared_turn(chosen: str, rejected: str) -> int:
    """Where the last answer begins, behind its ``Assistant:``, as far as both texts are the same."""
    found = chosen.rfind(ASSISTANT)
    while found >= 0:
        start = found + len(ASSISTANT)
        if rejected.startswith(chosen[:start]):
            return start
        found = chosen.rfind(ASSISTANT, 0, found)
    raise BadRow("'chosen' and 'rejected' share no beginning up to an 'Assistant:' turn")


def as_messages(prompt: str) -> list[dict[str, str]]:
    """The turns of a prompt that ends with ``Assistant:``, as chat messages without surrounding white space.

    Raises:
        BadRow: text in front of the first turn, or no turn before the answer.
    """
    before, *parts = _TURN.split(prompt)
    if before.strip():
        raise BadRow("the transcript has text in front of its first 'Human:' turn")
    turns = zip(parts[::2], parts[1::2], strict=True)
    messages = [{"role": _ROLES[speaker], "content": text.strip()} for speaker, text in turns][:-1]
    if not messages:
        raise BadRow("the transcript has no turn before the answer")
    return messages
