"""How rollouts are sampled, by the stage's config and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import pytest
from rl_core.config.sections import GeneratorConfig
from rl_core.contracts.tokenizer import Tokenizer
from rl_core.errors import ConfigError, DataError
from rl_rollout.generators import sampling_of


class Plain:
    """A third party's tokenizer that knows one end token."""

    special_tokens: Mapping[str, int | None] = {"bos_token_id": None, "eos_token_id": 7, "pad_token_id": 0}


class Several(Plain):
    end_token_ids = (7, 3, 7)
    never_sampled = (5, 0)


def sampling(tokenizer):
    stage = SimpleNamespace(
        generator=SimpleNamespace(config=GeneratorConfig(name="any", max_new_tokens=9)), evaluators=()
    )
    return sampling_of(stage, tokenizer)


def test_rollouts_stop_at_every_end_token_of_the_tokenizer():
    assert sampling(Several()).stop_token_ids == (7, 3)


def test_a_tokenizer_without_a_list_of_ends_has_its_end_of_sequence_token():
    assert sampling(Plain()).stop_token_ids == (7,)


class Digits:
    """A tokenizer of ten characters."""

    special_tokens = ()

    def encode_prompt(self, text: str) -> str:
        if not text.isdigit():
            raise DataError(f"the tokenizer does not know {text!r}")
        return text


def test_a_stop_string_that_the_tokenizer_cannot_express_stops_the_run_before_it_begins():
    tokenizer: Tokenizer = Digits()
    stage = SimpleNamespace(
        generator=SimpleNamespace(config=GeneratorConfig(name="any", stop=("1",))),
        evaluators=[SimpleNamespace(name="accuracy", config=SimpleNamespace(stop=("1", "\n")))],
    )
    with pytest.raises(ConfigError) as caught:
        sampling_of(stage, tokenizer)
    assert str(caught.value) == (
        "evaluators, accuracy: the stop string '\\n' can never occur: the tokenizer does not know '\\n'\n"
        "    remove the stop string"
    )
