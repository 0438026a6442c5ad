"""What a row gives the chat template besides its messages."""

from __future__ import annotations

from typing import Any

import pytest
from rl_core.errors import DataError
from rl_huggingface.chat_options import taken, template_options

MESSAGES = [{"role": "user", "content": "hi"}]


def tool(name: str, description: str = "") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": description}}


def test_the_model_is_offered_the_tools_of_the_environment_and_of_the_row() -> None:
    row = {"prompt": MESSAGES, "tools": [tool("add", "the row's"), tool("subtract")]}
    environment = [tool("add", "the environment's"), tool("search")]
    assert template_options(row, environment) == {"tools": [*environment, tool("subtract")]}


@pytest.mark.parametrize(
    "empty", [{}, {"tools": None, "chat_template_kwargs": None}, {"tools": "", "chat_template_kwargs": {}}]
)
def test_without_any_there_are_no_options(empty: dict[str, Any]) -> None:
    assert template_options({"prompt": MESSAGES, **empty}) == {}


def test_json_text_is_read() -> None:
    row = {"prompt": MESSAGES, "tools": '[{"name": "add"}]', "chat_template_kwargs": '{"enable_thinking": false}'}
    assert template_options(row) == {"tools": [{"name": "add"}], "template_kwargs": {"enable_thinking": False}}


def test_a_text_prompt_has_no_place_for_them() -> None:
    assert template_options({"prompt": "hi", "tools": "hammer"}, [tool("add")]) == {}


@pytest.mark.parametrize("tools", ["[", 3, {"name": "add"}, [None], ["x"]])
def test_what_is_no_list_of_schemas_is_refused(tools: Any) -> None:
    with pytest.raises(DataError, match="'tools"):
        template_options({"prompt": MESSAGES, "tools": tools})


def test_a_tokenizer_written_before_there_were_options_gets_those_it_takes() -> None:
    def old(prompt: str, *, tools: tuple[Any, ...] = ()) -> None: ...

    options = {"tools": [tool("add")], "template_kwargs": {"a": 1}}
    assert taken(old, options) == {"tools": options["tools"]}
    assert taken(lambda prompt, **others: None, options) == options
