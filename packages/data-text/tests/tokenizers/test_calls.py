"""Tool calls in the forms that data has them, through templates that take only some of them.

What is right comes from transformers' ``apply_chat_template`` on the form that the template takes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from chat_models import MODELS, WEATHER, oracle, pair, product, tokenizer_of
from rl_core.errors import DataError

ARGUMENTS = {"city": "Zürich", "days": 2, "hours": [6, 18]}
AS_TEXT = json.dumps(ARGUMENTS, ensure_ascii=False)
MISSING = object()
TAKEN: dict[str, tuple[Any, Any]] = {
    "qwen3": ("", ARGUMENTS),
    "qwen2.5": ("", ARGUMENTS),
    "llama3.1": ("", ARGUMENTS),
    "deepseek-v3": (None, AS_TEXT),
}
"""The content and the arguments that the templates of these models write rightly."""


def talk(content: Any, arguments: Any) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    asked = {"role": "assistant", "tool_calls": [call]} | ({} if content is MISSING else {"content": content})
    result = {"role": "tool", "content": "21 degrees"}
    return [{"role": "user", "content": "Is it warm?"}, asked, result, {"role": "assistant", "content": "Yes."}]


@pytest.mark.parametrize("arguments", [ARGUMENTS, AS_TEXT], ids=["object", "text"])
@pytest.mark.parametrize("content", [None, "", MISSING], ids=["null", "empty", "missing"])
@pytest.mark.parametrize("name", TAKEN)
def test_a_call_may_have_any_form_of_arguments_and_no_content(name: str, content: Any, arguments: Any) -> None:
    ours, theirs = pair(name)
    expected = oracle(theirs, talk(*TAKEN[name]), tools=[WEATHER])
    assert '{"city": "Zürich", "days": 2, "hours": [6, 18]}' in theirs.decode(expected)
    messages = talk(content, arguments)
    assert ours.encode_example({"messages": messages, "tools": [WEATHER]}, "all")[0].tolist() == expected
    prompt = oracle(theirs, talk(*TAKEN[name])[:3], tools=[WEATHER], add_generation_prompt=True)
    assert ours.encode_prompt(messages[:3], tools=[WEATHER]).tolist() == prompt


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [ARGUMENTS, AS_TEXT], ids=["object", "text"])
def test_mistral_takes_both_forms_of_arguments(arguments: Any) -> None:
    ours, theirs = pair("mistral-nemo")
    rows = [talk("", ARGUMENTS), talk(None, arguments)]
    for messages in rows:
        messages[1]["tool_calls"][0]["id"] = messages[2]["tool_call_id"] = "abcdefghi"
    expected = oracle(theirs, rows[0], tools=[WEATHER])
    assert ours.encode_example({"messages": rows[1], "tools": [WEATHER]}, "all")[0].tolist() == expected


def test_a_call_beside_a_text_that_the_template_would_leave_out_is_refused() -> None:
    ours, theirs = pair("deepseek-v3")
    messages = talk("I look.", AS_TEXT)
    assert "weather" not in theirs.apply_chat_template(messages, tokenize=False)
    with pytest.raises(DataError, match="leaves out or refuses the tool_calls of a message that has content as well"):
        ours.encode_example({"messages": messages}, "completion")


def test_a_text_beside_a_call_that_the_template_leaves_out_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = product(MODELS["llama3.1"]), tokenizer_of(MODELS["llama3.1"])
    messages = talk("I look.", ARGUMENTS)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            tokens = ours.encode_example({"messages": messages}, "all")[0].tolist()
    assert tokens == oracle(theirs, messages)
    assert caplog.messages == ["the chat template leaves out the content of messages with tool_calls"]


@pytest.mark.parametrize("arguments", ["Paris", "[1]", '{"city"'])
def test_arguments_that_are_no_json_object_are_refused_where_the_template_needs_one(arguments: str) -> None:
    ours, _ = pair("qwen2.5")
    with pytest.raises(DataError) as caught:
        ours.encode_example({"messages": talk("", arguments)}, "completion")
    assert f"the arguments of a tool call are {arguments!r}, not the JSON text of an object" in str(caught.value)


def test_a_call_without_arguments_has_an_empty_object() -> None:
    ours, theirs = pair("qwen2.5")
    expected = oracle(theirs, talk("", {}))
    assert ours.encode_example({"messages": talk("", "")}, "all")[0].tolist() == expected


def test_templates_that_go_through_the_arguments_one_by_one_take_text_too(characters: Callable) -> None:
    template = (
        "{% for m in messages %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}<{{ c.function.name }}>"
        "{% for key, value in c.function.arguments.items() %}{{ key }}={{ value }};{% endfor %}{% endfor %}"
        "{% endfor %}"
    )
    row = {"messages": talk(None, AS_TEXT)}
    tokenizer = characters([row], chat_template=template)
    text = tokenizer.decode(tokenizer.encode_example(row, "all")[0])
    assert text == "Is it warm?<weather>city=Zürich;days=2;hours=[6, 18];21 degreesYes."
