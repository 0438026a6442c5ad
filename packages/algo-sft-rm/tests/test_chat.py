"""Conversations through a real tokenizer: what is trained on are the assistant's turns, and a batch loss agrees."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from rl_algo_sft_rm.config import SftConfig
from rl_algo_sft_rm.sft import Sft
from rl_core.contracts.model import Role

CHATS = [
    {
        "messages": [
            {"role": "system", "content": "add"},
            {"role": "user", "content": "1+2"},
            {"role": "assistant", "content": "3"},
            {"role": "user", "content": "and 4"},
            {"role": "assistant", "content": "seven"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello there"},
            {"role": "user", "content": "bye"},
            {"role": "assistant", "content": ""},
        ]
    },
]
CHATML = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def stretches(tokenizer, batch, index: int) -> list[tuple[bool, str]]:
    """``(trained, text)`` of the runs of equal mask, the end token shown as ``$``."""
    where = batch.sequence(index)
    tokens, mask = batch.tokens[where], batch.token_columns["loss_mask"][where]
    eos = tokenizer.special_tokens["eos_token_id"]
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1), len(mask)]
    return [
        (bool(mask[a]), "".join("$" if t == eos else tokenizer.decode([t]) for t in tokens[a:b]))
        for a, b in pairwise(edges)
    ]


@pytest.mark.parametrize("template", [None, CHATML])
def test_exactly_the_assistant_turns_are_trained_on(characters: Callable, template: str | None) -> None:
    tokenizer = characters(CHATS, alphabet="<>", chat_template=template)
    batch = Sft(SftConfig(name="sft")).encode(CHATS, tokenizer)
    first, second = (stretches(tokenizer, batch, i) for i in range(2))
    assert [text for trained, text in first if trained] == ["3$", "seven$"]
    assert [text for trained, text in second if trained] == ["hello there$", "$"]
    between = [text for trained, text in first if not trained]
    if template is None:
        assert between == ["system: add\nuser: 1+2\nassistant: ", "\nuser: and 4\nassistant: "]
    else:
        assert between == ["<system>add\n<user>1+2\n<assistant>", "\n<user>and 4\n<assistant>"]


def test_loss_on_all_trains_on_every_token_but_the_first(characters: Callable) -> None:
    tokenizer = characters(CHATS)
    batch = Sft(SftConfig(name="sft", loss_on="all")).encode(CHATS, tokenizer)
    for i in range(2):
        assert batch.token_columns["loss_mask"][batch.sequence(i)].tolist() == [0, *[1] * (batch.lengths[i] - 1)]


def test_the_loss_of_conversations_is_that_of_the_assistant_tokens(characters: Callable, local_model: Callable) -> None:
    algorithm, tokenizer = Sft(SftConfig(name="sft")), characters(CHATS)
    batch = algorithm.encode(CHATS, tokenizer)
    model = local_model(Role("policy", trainable=True), tokenizer)
    everything = batch.with_columns(token={"loss_mask": np.ones(len(batch.tokens), np.float32)})
    logprobs = model.forward(everything, ("logprobs",))["logprobs"]
    expected = -logprobs[batch.token_columns["loss_mask"] > 0].mean()
    assert algorithm.evaluate(batch, {"policy": model})["eval/loss"] == pytest.approx(expected, rel=1e-5)
    assert algorithm.step(batch, {"policy": model})["train/loss"] == pytest.approx(expected, rel=1e-5)
