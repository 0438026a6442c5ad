"""One conversation through the chat templates of public models.

What is right comes from transformers' ``apply_chat_template``; each test is a property that every model must have.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_models import DEEPSEEK_R1, LARGE, MODELS, WEATHER, ChatModel, oracle, pair, product, tokenizer_of
from rl_core.errors import DataError
from rl_data_text.config import HfTokenizerConfig
from rl_data_text.tokenizers.base import TextTokenizer
from rl_data_text.tokenizers.hf import HfTokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

TALK = [
    {"role": "user", "content": "What is the answer?"},
    {"role": "assistant", "content": "It is 42."},
    {"role": "user", "content": "And 7 times 6?"},
    {"role": "assistant", "content": "The same."},
]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TOOL_TALK = [
    {"role": "user", "content": "Is it warm?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "21 degrees", "name": "weather"},
    {"role": "assistant", "content": "Yes."},
]


def names(chosen: Callable[[ChatModel], bool] = lambda model: True) -> list[Any]:
    fitting = [name for name, model in MODELS.items() if chosen(model)]
    return [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in fitting]


def trained_text(tokenizer: TextTokenizer, raw: Any, row: dict[str, Any]) -> list[str]:
    """The stretches of trained tokens, special tokens shown."""
    tokens, mask = tokenizer.encode_example(row, "completion")
    edges = np.flatnonzero(np.diff([0, *mask, 0]))
    return [raw.decode(tokens[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def end_of(name: str) -> str:
    return MODELS[name].stop.strip()


@pytest.mark.parametrize("name", names())
def test_a_conversation_has_the_tokens_of_the_whole_of_it(name: str) -> None:
    ours, theirs = pair(name)
    tokens = ours.encode_example({"messages": TALK}, "all")[0].tolist()
    expected = oracle(theirs, TALK)
    if end_of(name) not in theirs.decode(expected):  # GLM: the template writes no end
        assert tokens == [*expected, theirs.eos_token_id]
    else:
        assert tokens == expected


@pytest.mark.parametrize("name", names())
def test_an_example_begins_with_the_prompt_of_rollouts(name: str) -> None:
    ours, theirs = pair(name)
    prompt = ours.encode_prompt(TALK[:3]).tolist()
    assert prompt == oracle(theirs, TALK[:3], add_generation_prompt=True)
    for row in (
        {"messages": TALK},
        {"prompt": TALK[:3], "completion": TALK[3:]},
        {"prompt": TALK[:3], "completion": "A."},
    ):
        tokens, mask = ours.encode_example(row, "completion")
        assert tokens[: len(prompt)].tolist() == prompt
        assert mask[len(prompt)] == 1


@pytest.mark.parametrize("name", names())
def test_the_answers_with_the_tokens_that_end_them_are_trained_on_and_nothing_else(name: str) -> None:
    ours, theirs = pair(name)
    model = MODELS[name]
    said = [f"{model.lead}{TALK[i]['content']}{model.stop}" for i in (1, 3)]
    if name == "glm4":  # an earlier turn ends where the next begins: that is generation_config.json's to say
        said[0] = TALK[1]["content"]
    stripped = [text.replace(" ", "") for text in said]
    found = [text.replace(" ", "") for text in trained_text(ours, theirs, {"messages": TALK})]
    assert found == (stripped if model.keeps else stripped[1:])
    for completion in (TALK[3:], TALK[3]["content"]):
        (text,) = trained_text(ours, theirs, {"prompt": TALK[:3], "completion": completion})
        assert text.replace(" ", "").removeprefix(model.lead) == stripped[1].removeprefix(model.lead)


@pytest.mark.parametrize("name", names(lambda model: model.keeps))
def test_rollouts_of_several_turns_have_the_tokens_of_the_conversation_in_training(name: str) -> None:
    ours, _ = pair(name)
    tokens, mask = ours.encode_example({"messages": TALK}, "completion")
    first, second = (np.flatnonzero(np.diff([0, *mask, 0]))[i : i + 2] for i in (0, 2))
    answer = tokens[first[0] : first[1]]  # as the model would write it
    ends = name != "glm4"
    reply = ours.encode_reply(TALK[2:3], chat=True, ended=ends)
    rolled_out = np.concatenate([ours.encode_prompt(TALK[:1]), answer, reply, tokens[second[0] : second[1]]])
    assert rolled_out.tolist() == tokens[: second[1]].tolist()
    assert mask[second[1] :].sum() == 0


@pytest.mark.parametrize("name", names(lambda model: model.keeps))
def test_a_turn_that_was_cut_is_ended_before_the_reply(name: str) -> None:
    ours, theirs = pair(name)
    cut, ended = (ours.encode_reply(TALK[2:3], chat=True, ended=e).tolist() for e in (False, True))
    assert cut[len(cut) - len(ended) :] == ended
    closing = theirs.decode(cut[: len(cut) - len(ended)])
    assert closing.strip() == ("" if name == "glm4" else end_of(name))


@pytest.mark.parametrize("name", names(lambda model: model.keeps and not model.user_first))
def test_the_header_of_a_first_turn_of_the_assistants_is_not_trained_on(name: str) -> None:
    ours, theirs = pair(name)
    found = [text.replace(" ", "") for text in trained_text(ours, theirs, {"messages": TALK[1:]})]
    whole = [text.replace(" ", "") for text in trained_text(ours, theirs, {"messages": TALK})]
    assert found == whole


@pytest.mark.parametrize("name", names())
def test_a_prompt_that_ends_with_the_assistant_is_continued(name: str) -> None:
    ours, theirs = pair(name)
    begun = [TALK[0], {"role": "assistant", "content": "It is"}]
    prompt = ours.encode_prompt(begun).tolist()
    assert prompt == oracle(theirs, begun, continue_final_message=True)
    for completion in (" 42.", [{"role": "assistant", "content": " 42."}]):
        tokens, mask = ours.encode_example({"prompt": begun, "completion": completion}, "completion")
        assert tokens[: len(prompt)].tolist() == prompt
        assert not mask[: len(prompt)].any()
        assert theirs.decode(tokens[len(prompt) :][mask[len(prompt) :] == 1]).replace(" ", "") == f"42.{end_of(name)}"


@pytest.mark.parametrize("name", names(lambda model: model.tools))
def test_tools_calls_and_results_make_the_round_trip(name: str) -> None:
    ours, theirs = pair(name)
    row = {"messages": TOOL_TALK, "tools": [WEATHER]}
    assert ours.encode_example(row, "all")[0].tolist() == oracle(theirs, TOOL_TALK, tools=[WEATHER])
    prompt = ours.encode_prompt(TOOL_TALK[:1], tools=[WEATHER])
    assert prompt.tolist() == oracle(theirs, TOOL_TALK[:1], tools=[WEATHER], add_generation_prompt=True)
    assert "The weather of a city." in theirs.decode(prompt)
    *calls, answer = trained_text(ours, theirs, row)
    assert answer.endswith(f"Yes.{end_of(name)}")
    if not MODELS[name].keeps:  # a call that was the last turn would have been written otherwise
        assert not calls
        calls = trained_text(ours, theirs, {"messages": TOOL_TALK[:2], "tools": [WEATHER]})
    (call,) = calls
    assert '"weather"' in call
    assert '{"city": "Paris"}' in call
    assert call.endswith(end_of(name))


@pytest.mark.parametrize("name", names())
def test_a_message_that_is_not_to_be_trained_on_is_read(name: str) -> None:
    ours, theirs = pair(name)
    row = {"messages": [TALK[0], {**TALK[1], "weight": 0}, *TALK[2:]]}
    tokens = ours.encode_example(row, "completion")[0].tolist()
    assert tokens == ours.encode_example({"messages": TALK}, "completion")[0].tolist()
    assert trained_text(ours, theirs, row) == trained_text(ours, theirs, {"messages": TALK})[-1:]


def test_qwen3_is_prompted_not_to_think() -> None:
    theirs = tokenizer_of(MODELS["qwen3"])
    expected = oracle(theirs, TALK[:3], add_generation_prompt=True, enable_thinking=False)
    ours, _ = pair("qwen3")
    assert ours.encode_prompt(TALK[:3], template_kwargs={"enable_thinking": False}).tolist() == expected
    configured = product(MODELS["qwen3"], chat_template_kwargs={"enable_thinking": False})
    assert configured.encode_prompt(TALK[:3]).tolist() == expected
    row = {"messages": TALK, "chat_template_kwargs": '{"enable_thinking": false}'}
    tokens, mask = ours.encode_example(row, "completion")
    assert tokens[: len(expected)].tolist() == expected
    assert theirs.decode(tokens[mask == 1]) == "The same.<|im_end|>", "the empty thought is the prompt's"
    thinks, replies = (
        ours.encode_reply(TALK[2:3], chat=True, ended=True, **o)
        for o in ({}, {"template_kwargs": {"enable_thinking": False}})
    )
    assert theirs.decode(replies) == theirs.decode(thinks) + "<think>\n\n</think>\n\n"


def test_turns_that_the_template_renders_otherwise_later_are_read_and_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours, theirs = product(MODELS["qwen3"]), tokenizer_of(MODELS["qwen3"])
    thoughts = [
        {**m, "content": f"<think>\nhm\n</think>\n\n{m['content']}"} if m["role"] == "assistant" else m for m in TALK
    ]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert trained_text(ours, theirs, {"messages": thoughts}) == [
                "<think>\nhm\n</think>\n\nThe same.<|im_end|>"
            ]
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("1 of a conversation's 2 assistant turns are read, not trained on")
    first = trained_text(ours, theirs, {"messages": thoughts[:2]})
    assert first == ["<think>\nhm\n</think>\n\nIt is 42.<|im_end|>"]


def test_a_thought_that_the_template_would_drop_is_refused_as_a_message_and_kept_as_text() -> None:
    model = ChatModel("deepseek_v3", template=DEEPSEEK_R1)
    ours, theirs = product(model), tokenizer_of(model)
    thought = "I add.\n</think>\n\n42"
    with pytest.raises(DataError, match="is not prefix-stable"):
        ours.encode_example({"messages": [TALK[0], {"role": "assistant", "content": thought}]}, "completion")
    row = {"prompt": TALK[:1], "completion": thought}
    assert trained_text(ours, theirs, row) == [f"{thought}<｜end▁of▁sentence｜>"]
    prompt = oracle(theirs, TALK[:1], add_generation_prompt=True)
    assert ours.encode_example(row, "completion")[0][: len(prompt)].tolist() == prompt


@pytest.mark.slow
def test_text_parts_have_the_tokens_that_a_template_that_reads_them_gives_them() -> None:
    ours, theirs = pair("gemma3")
    parts = [[{"type": "text", "text": text} for text in (m["content"][:6], m["content"][6:])] for m in TALK]
    messages = [{**message, "content": one} for message, one in zip(TALK, parts, strict=True)]
    expected = oracle(theirs, [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in TALK])
    assert ours.encode_example({"messages": messages}, "all")[0].tolist() == expected


@pytest.mark.parametrize("name", ["llama3", "gemma"])
def test_contents_that_templates_would_write_as_python_prints_them_are_refused(name: str) -> None:
    ours, theirs = pair(name)
    for content in (None, [{"type": "image"}], {"text": "Hi"}):
        messages = [TALK[0], {"role": "assistant", "content": content}]
        if content is None:
            assert "None" in theirs.apply_chat_template(messages, tokenize=False)
        with pytest.raises(DataError, match=r"the content of message 1 \(assistant\) is \w+, not text"):
            ours.encode_example({"messages": messages}, "completion")


def test_a_conversation_of_no_messages_is_an_error() -> None:
    ours, _ = pair("llama3")
    with pytest.raises(DataError, match="a row: the list of messages is empty"):
        ours.encode_example({"messages": []}, "completion")
    with pytest.raises(DataError, match="the list of messages is empty"):
        ours.encode_prompt([])


def test_an_earlier_turn_that_ends_where_the_next_begins_is_trained_with_that_token(tmp_path: Path) -> None:
    model = MODELS["glm4"]
    theirs = tokenizer_of(model)
    user = theirs.convert_tokens_to_ids("<|user|>")
    theirs.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [theirs.eos_token_id, user]}))
    ours = HfTokenizer(HfTokenizerConfig(name="hf"))
    ours.load(str(tmp_path), [])
    assert ours.end_token_ids == (theirs.eos_token_id, user)
    tokens, mask = ours.encode_example({"messages": TALK}, "completion")
    assert tokens.tolist() == [*oracle(theirs, TALK), theirs.eos_token_id]
    assert trained_text(ours, theirs, {"messages": TALK}) == ["It is 42.<|user|>", "The same.<|endoftext|>"]
    # In rollouts the model writes that token itself, and the reply goes on behind it.
    first = np.flatnonzero(np.diff([0, *mask, 0]))
    reply = ours.encode_reply(TALK[2:3], chat=True, ended=False).tolist()
    assert [user, *tokens[first[1] : first[2]]] == reply


IN_SUITE = ("llama2", "zephyr", "phi3", "qwen3")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_SUITE else pytest.mark.nightly) for name in MODELS]
)
def test_what_is_saved_has_the_tokens_of_the_model_it_came_from(name: str, tmp_path: Path) -> None:
    ours, theirs = pair(name)
    ours.save(str(tmp_path))
    # DeepSeek's is byte-level under the name of Llama's class, which AutoTokenizer takes at its word.
    loader = PreTrainedTokenizerFast if name == "deepseek-v3" else AutoTokenizer
    saved = loader.from_pretrained(tmp_path, local_files_only=True)
    assert oracle(saved, TALK) == oracle(theirs, TALK)
    again = HfTokenizer(HfTokenizerConfig(name="hf"))
    again.load(str(tmp_path), [])
    tokens, mask = ours.encode_example({"messages": TALK}, "completion")
    expected = again.encode_example({"messages": TALK}, "completion")
    assert [tokens.tolist(), mask.tolist()] == [one.tolist() for one in expected]
