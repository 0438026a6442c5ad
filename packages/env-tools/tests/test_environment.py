"""Turns with calls, turns without, and what can go wrong in between."""

from __future__ import annotations

import asyncio
import json

import pytest
from rl_core.contracts.environment import Turn, tools_of
from rl_core.errors import ConfigError
from rl_rollout.environment_calls import EnvironmentCalls


def say(environment, text):
    """The environment's answer to a model turn."""
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]
    return asyncio.run(environment.step(None, said))


def hermes(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def contents(turn):
    assert not turn.done
    return [message["content"] for message in turn.messages]


def test_results_come_back_as_messages_of_the_tools(tools):
    environment = tools("calculator", "search")
    turn = say(environment, hermes("calculator", expression="6*7") + hermes("search", query="tea", limit=1))
    assert turn == Turn(
        messages=[
            {"role": "tool", "name": "calculator", "content": "42"},
            {"role": "tool", "name": "search", "content": '["tea new 0"]'},
        ],
        done=False,
    )


def test_a_turn_without_a_call_is_the_answer(tools):
    assert say(tools("calculator"), "42") == Turn(done=True, reward=0.0)


def test_role_and_text_of_results_can_be_chosen(tools):
    environment = tools("calculator", format="brackets", result_role="user", result_text=" {tool} says {result}\n")
    assert say(environment, "[calculator(6*7)]").messages == [
        {"role": "user", "name": "calculator", "content": " calculator says 42\n"}
    ]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (hermes("calculater", expression="1*1"), "error: there is no tool 'calculater'; tools: calculator, search"),
        (hermes("calculator", expression="1/1"), "error: ValueError: not enough values to unpack (expected 2, got 1)"),
        (hermes("calculator"), "error: calculator: expression: Field required"),
        (hermes("search", query="a", pages=2), "error: search: pages: Extra inputs are not permitted"),
        (
            hermes("search", query="a", limit="many"),
            "error: search: limit: Input should be a valid integer, unable to parse string as an integer",
        ),
        ("<tool_call>{}</tool_call>", 'error: a tool call is {"name": …, "arguments": {…}}'),
    ],
)
def test_the_model_is_told_what_was_wrong_with_its_call(tools, call, told):
    assert contents(say(tools("calculator", "search"), call)) == [told]


def test_coroutines_are_tools_too(tools):
    environment = tools("fetch", "calculator")
    calls = hermes("fetch", page="a") + hermes("calculator", expression="2*2") + hermes("fetch", page="none")
    turn = say(environment, calls)
    assert contents(turn) == ['{"page": "a", "text": "für alle"}', "4", "error: LookupError: no such page"]


@pytest.mark.parametrize(
    ("tool", "told"),
    [
        ("sleeps", "took longer than 1 s in step, after turn 1 of the conversation of row 1 (…/my_tools.py:"),
        ("spins", "took longer than 1 s in step, after turn 1 of the conversation of row 1 (…/my_tools.py:"),
        ("waits", "took longer than 1 s in step, after turn 1 of the conversation of row 1\n"),
        (
            "leaves",
            "has a tool that ended its process (exit code 3) in step, after turn 1 of the conversation of row 1\n",
        ),
    ],
)
def test_a_tool_that_hangs_or_dies_is_a_failure_of_that_call_alone(tools, my_tools, tool, told):
    environment = tools(tool, "calculator", step_timeout_s=1.0)
    calls = EnvironmentCalls(environment, name="environment 'tools'", timeout_s=1.0, concurrency=4)
    said = [[{"role": "assistant", "content": hermes(*call)}] for call in ((tool,), ("calculator",))]
    said[1][0]["content"] = hermes("calculator", expression="6*7")
    started = [calls.start({}, 0, place=f"row {n}") for n in (1, 2)]
    steps = [
        calls.step(state, conversation, turn=1, place=f"row {n}")
        for n, state, conversation in zip((1, 2), started, said, strict=True)
    ]
    calls.wait(steps, at_most_s=60, all_of_them=True)
    failure = str(steps[0].exception()).replace(my_tools, "…/my_tools.py")
    assert failure.startswith(f"environment 'tools' {told}")
    assert contents(steps[1].result()) == ["42"]
    calls.close()


def test_the_schema_comes_from_signature_and_docstring(tools):
    calculator, search = tools_of(tools("calculator", "search"))
    assert calculator == {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Compute a product.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string", "description": "such as 2*3"}},
                "required": ["expression"],
            },
        },
    }
    assert search["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "limit": {"type": "integer", "default": 3},
            "order": {"type": "string", "enum": ["new", "old"], "default": "new"},
        },
        "required": ["query"],
    }


def test_a_function_whose_parameters_have_no_names_is_refused(tools, my_tools):
    with pytest.raises(ConfigError) as caught:
        tools("everything")
    assert str(caught.value) == (
        f"tool {my_tools}:everything: a tool's parameters have names, and *words: 'str' has none of its own"
    )
