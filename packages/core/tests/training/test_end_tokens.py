"""End tokens on their way from the tokenizer to the generator and into an export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
from rl_core.contracts.tokenizer import end_token_ids, never_sampled
from rl_core.training.generation_config import add_end_tokens


class Plain:
    """A third party's tokenizer that knows one end token."""

    special_tokens: Mapping[str, int | None] = {"bos_token_id": None, "eos_token_id": 7, "pad_token_id": 0}


class Several(Plain):
    end_token_ids = (7, 3, 7)
    never_sampled = (5, 0)


def test_end_tokens_are_the_tokenizers_list_or_its_end_of_sequence_token():
    assert end_token_ids(Several()) == (7, 3)
    assert end_token_ids(Plain()) == (7,)
    assert end_token_ids(SimpleNamespace(special_tokens={"eos_token_id": None})) == ()


def test_a_tokenizer_says_what_is_never_sampled_or_nothing():
    assert never_sampled(Several()) == (0, 5)
    assert never_sampled(Plain()) == ()


@pytest.mark.parametrize(
    ("given", "ends", "written"),
    [
        ({}, (7,), 7),
        ({"eos_token_id": 7}, (7, 3), [7, 3]),
        ({"eos_token_id": [3, 9], "temperature": 0.6}, (7, 3), [7, 3, 9]),
        ({"eos_token_id": 7}, (), 7),
    ],
)
def test_an_exports_generation_config_lists_every_end_token(given, ends, written, tmp_path):
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(given))
    add_end_tokens(tmp_path, ends)
    assert json.loads(path.read_text()) == given | {"eos_token_id": written}


def test_an_export_that_does_not_generate_gets_no_generation_config(tmp_path):
    add_end_tokens(tmp_path, (7, 3))
    assert not list(tmp_path.iterdir())
