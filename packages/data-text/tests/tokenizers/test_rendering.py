"""Templates that run away are errors, in seconds; others render as transformers renders them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rl_core.errors import DataError
from rl_data_text.tokenizers import chat
from rl_huggingface.chat_rendering import Limits, Renderer
from transformers.utils.chat_template_utils import render_jinja_template

MESSAGES = [{"role": "user", "content": "hi <b> ü"}, {"role": "assistant", "content": "fox "}]


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    one = Renderer(Limits(seconds=0.3, characters=100_000))
    yield one
    one.close()


def render(renderer: Renderer, template: str) -> str:
    return renderer.render(template, MESSAGES, {}, [(len(MESSAGES), "whole")])[0].text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}",
            "did not end within 0.3 s of CPU time",
        ),
        ("{{ 10 ** (10 ** 9) }}", "did not end within 0.3 s of CPU time"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{{ 'a' * 10**10 }}", "it needs too much memory"),
        ("{{ 'a'.ljust(10**11) }}", "it needs too much memory"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it recurses too deeply"),
        ("{% for i in range(99999) %}aaaaaaaaaaaaaaaa{% endfor %}", "it writes more than 100,000 characters"),
        ("{{ messages[0].nobody.content }}", "'dict object' has no attribute 'nobody'"),
        ("{{ raise_exception('no') }}", "the chat template refuses the messages: no"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ messages[0].update({'role': 'x'}) }}", "access to attribute 'update' of 'dict' object is unsafe"),
        ("{% if %}", "the chat template cannot be compiled"),
    ],
)
def test_a_template_that_runs_away_or_fails_is_an_error_and_the_next_one_renders(
    template: str, reason: str, renderer: Renderer
) -> None:
    with pytest.raises(DataError) as caught:
        render(renderer, template)
    assert reason in str(caught.value)
    assert render(renderer, "{{ messages[0].content }}") == MESSAGES[0]["content"]


def test_doubling_text_ends_in_an_error_within_seconds() -> None:
    one = Renderer(Limits(bytes=1 << 28))
    doubling = "{% set t = namespace(x='ab') %}{% for i in range(99) %}{% set t.x = t.x ~ t.x %}{% endfor %}{{ t.x }}"
    with pytest.raises(DataError, match="it needs too much memory"):
        render(one, doubling)
    one.close()


@pytest.mark.parametrize(
    "template",
    [
        "{%- for m in messages %}\n  {%- if m.role == 'user' %}\n<u>{{ m | tojson }}\n  {%- endif %}\n{%- endfor %}\n",
        "{% for m in messages %}\n{% if loop.first %}{% continue %}{% endif %}\n{{ m.content | trim }}|{% endfor %}\n",
        "{{ messages | tojson(indent=2) }}{{ tools is none }}{{ documents is none }}{{ nothing is defined }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}.{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ eos }}",
        "{{ strftime_now('%Y') }}{{ add_generation_prompt }}{{ messages[::-1][0].content.strip().upper() }}",
    ],
)
def test_templates_render_as_transformers_renders_them(template: str, renderer: Renderer) -> None:
    given: dict[str, Any] = {"tools": None, "documents": None, "eos": "</s>"}
    (expected,), _ = render_jinja_template([MESSAGES], chat_template=template, **given)
    asked, _ = render_jinja_template([MESSAGES], chat_template=template, add_generation_prompt=True, **given)
    found = renderer.render(template, MESSAGES, given, [(2, "whole"), (2, "ask")])
    assert [one.text for one in found] == [expected, *asked]


def test_marked_parts_are_those_that_transformers_finds(renderer: Renderer) -> None:
    marked = "{% for m in messages %}>{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    _, (spans,) = render_jinja_template([MESSAGES], chat_template=marked, return_assistant_tokens_mask=True)
    assert list(renderer.render(marked, MESSAGES, {}, [(2, "whole")])[0].spans) == spans


@pytest.mark.parametrize("content", ["fox ", "fox", " fox\n"])
@pytest.mark.parametrize("filter", ["", " | trim"])
def test_a_message_is_continued_as_transformers_continues_it(content: str, filter: str, renderer: Renderer) -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content" + filter + " }}</s>{% endfor %}"
    messages = [MESSAGES[0], {"role": "assistant", "content": content}]
    expected, _ = render_jinja_template([messages], chat_template=template, continue_final_message=True)
    assert [one.text for one in renderer.render(template, messages, {}, [(2, "continue")])] == expected


def test_a_forked_process_has_a_renderer_of_its_own(renderer: Renderer) -> None:
    render(renderer, "{{ messages[0].role }}")
    child = os.fork()
    if child == 0:
        os._exit(0 if render(renderer, "{{ messages[1].role }}") == "assistant" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert render(renderer, "{{ messages[0].role }}") == "user"


def test_a_row_whose_template_runs_away_is_named(
    characters: Callable, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "shared_renderer", lambda: renderer)  # with its lower limit
    forever = "{% for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}"
    tokenizer = characters([{"prompt": "1"}], chat_template=forever)
    with pytest.raises(DataError) as caught:
        tokenizer.encode_example({"messages": MESSAGES, "__where__": "a.jsonl:3"}, "completion")
    assert str(caught.value) == (
        "a.jsonl:3: the chat template did not end within 0.3 s of CPU time\n"
        "    use a chat template that works (tokenizer.chat_template for the policy's), or change the messages"
    )


def test_what_no_part_of_the_template_reads_is_reported_once(
    characters: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    row = {
        "messages": [{**MESSAGES[0], "mood": "good", "weight": 1, "tool_call_id": "1"}, MESSAGES[1]],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    tokenizer = characters([{"messages": MESSAGES}])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            tokenizer.encode_example(row, "completion")
    assert sorted(caplog.messages) == [
        f"the chat template does not read {what}: it has no effect"
        for what in ("'enable_thinking' of chat_template_kwargs", "'tools'", "the message key 'mood'")
    ]


def test_a_key_of_a_message_that_the_template_reads_reaches_it(characters: Callable) -> None:
    shows = "{% for m in messages %}{{ m.mood }}:{{ m.content }}{% endfor %}"
    rows = [{"prompt": [{"role": "user", "content": "hi", "mood": "good"}]}]
    tokenizer = characters(rows, chat_template=shows)
    assert tokenizer.decode(tokenizer.encode_prompt(rows[0]["prompt"])) == "good:hi"


def test_calls_that_the_template_would_leave_out_are_refused(characters: Callable) -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    with pytest.raises(DataError) as caught:
        characters([{"messages": MESSAGES}]).encode_example({"messages": [MESSAGES[0], called]}, "completion")
    assert str(caught.value).startswith("a row: a message has tool_calls, but the chat template does not render them\n")


def test_template_variables_of_the_config_are_checked_when_it_is_loaded(characters: Callable) -> None:
    template = "{{ mood }}{% for m in messages %}{{ m.content }}{% endfor %}"
    kwargs = {"chat_template": template, "alphabet": "good"}
    tokenizer = characters([{"messages": MESSAGES}], **kwargs, chat_template_kwargs={"mood": "good"})
    assert tokenizer.decode(tokenizer.encode_prompt(MESSAGES[:1])) == "goodhi <b> ü"
    with pytest.raises(DataError) as caught:
        characters([{"messages": MESSAGES}], **kwargs, chat_template_kwargs={"moood": "good"})
    assert str(caught.value) == (
        "tokenizer.chat_template_kwargs: the chat template does not read 'moood'\n    it reads mood"
    )
    with pytest.raises(DataError, match="'messages' is not for the config to set"):
        characters([{"messages": MESSAGES}], **kwargs, chat_template_kwargs={"messages": []})
