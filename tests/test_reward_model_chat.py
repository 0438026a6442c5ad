"""A reward model reads a conversation in the tokens of transformers' templates, and as it was trained on it.

What is right comes from ``apply_chat_template``; for a completion, which no template renders by itself, from what a row
of training has.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from chat_models import LARGE, MODELS, WEATHER, oracle, pair
from rl_core.contracts.reward import Sample
from rl_core.errors import DataError
from rl_reward_model.config import ModelRewardConfig
from rl_reward_model.encoding import Encoder

SLOW = (*LARGE, "llama3", "llama3.1", "qwen2.5", "deepseek-v3")
NAMES = [pytest.param(name, marks=pytest.mark.nightly if name in SLOW else ()) for name in MODELS]
ARGUMENTS = {"city": "Zürich", "days": 2}
TALK = [
    {"role": "user", "content": "What is 6 times 7?"},
    {"role": "assistant", "content": "42"},
    {"role": "user", "content": "And 7 times 6?"},
]


@pytest.fixture(scope="module")
def encoder_of(tmp_path_factory: pytest.TempPathFactory):
    """``encoder_of(name, **config)``: of a folder with that model's tokenizer."""
    folders: dict[str, Path] = {}

    @cache
    def make(name: str, **config: Any) -> Encoder:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("reward-model")
            pair(name)[0].save(str(folders[name]))
            (folders[name] / "config.json").write_text(json.dumps({"model_type": "llama"}))
        return Encoder(ModelRewardConfig.model_validate({"name": "model", "path": str(folders[name]), **config}))

    return make


def tokens(encoder: Encoder, prompt: list[dict[str, Any]], completion: str, **row: Any) -> list[int]:
    return encoder.encode([Sample(row={"prompt": prompt, **row}, prompt="", completion=completion)])[0].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_completion_has_the_tokens_of_training(name: str, encoder_of) -> None:
    ours, theirs = pair(name)
    expected = ours.encode_example({"prompt": TALK, "completion": "The same."}, "all")[0].tolist()
    assert tokens(encoder_of(name), TALK, "The same.") == expected
    prompt = oracle(theirs, TALK, add_generation_prompt=True)
    assert expected[: len(prompt)] == prompt


@pytest.mark.parametrize("name", ["qwen3", "zephyr", "phi3"])
def test_a_whole_conversation_has_the_tokens_of_transformers(name: str, encoder_of) -> None:
    whole = oracle(pair(name)[1], [*TALK, {"role": "assistant", "content": "The same."}])
    assert tokens(encoder_of(name, chat="conversation"), TALK, "The same.") == whole


@pytest.mark.parametrize("content", [None, "", [{"type": "text", "text": ""}]], ids=["null", "empty", "parts"])
@pytest.mark.parametrize("arguments", [ARGUMENTS, json.dumps(ARGUMENTS, ensure_ascii=False)], ids=["object", "text"])
@pytest.mark.parametrize("name", ["qwen3", "deepseek-v3"])
def test_calls_of_tools_reach_the_reward_models_template_in_the_form_it_takes(
    name: str, arguments: Any, content: Any, encoder_of
) -> None:
    def talk(content: Any, arguments: Any) -> list[dict[str, Any]]:
        call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
        result = {"role": "tool", "content": "21 degrees"}
        return [TALK[0], {"role": "assistant", "content": content, "tool_calls": [call]}, result]

    _, theirs = pair(name)
    taken = (None, json.dumps(ARGUMENTS, ensure_ascii=False)) if name == "deepseek-v3" else ("", ARGUMENTS)
    expected = oracle(theirs, talk(*taken), tools=[WEATHER], add_generation_prompt=True)
    found = tokens(encoder_of(name), talk(content, arguments), "Yes.", tools=[WEATHER])
    assert found[: len(expected)] == expected
    assert '"city": "Zürich"' in theirs.decode(found)


def test_calls_that_the_reward_models_template_leaves_out_are_refused(encoder_of) -> None:
    calls = [{"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}]
    prompt = [TALK[0], {"role": "assistant", "content": "", "tool_calls": calls}, TALK[2]]
    with pytest.raises(DataError, match="a message has tool_calls, but the chat template does not render them"):
        tokens(encoder_of("phi4"), prompt, "Yes.")


def test_parts_of_text_are_one_text_and_nulls_are_no_keys(encoder_of) -> None:
    encoder = encoder_of("qwen3")
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "6 times 7?"}]
    given = [{"role": "user", "content": parts, "tool_calls": None, "name": None}, *TALK[1:]]
    assert tokens(encoder, given, "42") == tokens(encoder, TALK, "42")


def test_an_answer_that_was_begun_is_continued(encoder_of) -> None:
    ours, _ = pair("qwen3")
    begun = [*TALK, {"role": "assistant", "content": "The"}]
    expected, _ = ours.encode_example({"prompt": begun, "completion": " same."}, "all")
    assert tokens(encoder_of("qwen3"), begun, " same.") == expected.tolist()
