"""Reading calls out of text."""

from __future__ import annotations

import pytest
from rl_env_tools.calls import Call, bracket_calls, hermes_calls

PARAMETERS = {"calculator": ("expression",), "search": ("query", "limit")}


def brackets(text: str) -> list[Call]:
    return bracket_calls(text, PARAMETERS, raw=frozenset({"calculator"}))


def test_hermes_calls_are_found_in_order_among_text():
    text = (
        'Let me see.\n<tool_call>\n{"name": "search", "arguments": {"query": "tea"}}\n</tool_call>\n'
        '<tool_call>{"name": "now"}</tool_call> and <tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>'
    )
    assert hermes_calls(text) == [Call("search", {"query": "tea"}), Call("now", {}), Call("f", {"a": 1})]
    assert hermes_calls("no call here") == []


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ('<tool_call>{"name": "f"}', Call("", {}, "the tool call is not closed with </tool_call>")),
        (
            "<tool_call>f()</tool_call>",
            Call("", {}, "the tool call is no JSON: Expecting value: line 1 column 1 (char 0)"),
        ),
        ('<tool_call>["f"]</tool_call>', Call("", {}, 'a tool call is {"name": …, "arguments": {…}}')),
        (
            '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
            Call("f", {}, '"arguments" must be an object with one entry per parameter'),
        ),
        (
            '<tool_call>{"name": "f", "arguments": "1+"}</tool_call>',
            Call("f", {}, '"arguments" must be an object with one entry per parameter'),
        ),
    ],
)
def test_a_hermes_call_that_cannot_be_read_says_why(text, call):
    assert hermes_calls(text) == [call]


def test_bracket_calls_are_found_by_the_names_of_tools():
    assert brackets("It is [calculator((1+2)*3)], I think [of(others)].") == [
        Call("calculator", {"expression": "(1+2)*3"})
    ]
    assert brackets('[search("tea [green]", limit=2)][search("a")]') == [
        Call("search", {"query": "tea [green]", "limit": 2}),
        Call("search", {"query": "a"}),
    ]
    assert bracket_calls("[f()]", {}, raw=frozenset()) == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[search(tea)]", "the arguments 'tea' are no Python values separated by commas"),
        ('[search("a" "b", )) )]', 'the arguments \'"a" "b", )) \' are no Python values separated by commas'),
        ('[search("a", 2, 3)]', "search takes 2 arguments: query, limit"),
        ('[search(**{"query": "a"})]', "search takes 2 arguments: query, limit"),
    ],
)
def test_a_bracket_call_that_cannot_be_read_says_why(text, error):
    assert brackets(text) == [Call("search", {}, error)]
