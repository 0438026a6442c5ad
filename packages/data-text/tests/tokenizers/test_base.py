"""Encoding examples: which tokens, and which of them are trained on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_models import LLAMA2, MISTRAL, PHI3, ZEPHYR, ChatModel, tokenizer_of
from rl_core.errors import DataError
from tokenizers.processors import TemplateProcessing

CHAT = [
    {"role": "user", "content": "1"},
    {"role": "assistant", "content": "22"},
    {"role": "user", "content": "3"},
    {"role": "assistant", "content": "44"},
]


def trained_text(tokenizer, row: dict, loss_on: str = "completion") -> list[str]:
    """The stretches of tokens with mask 1, special tokens shown."""
    tokens, mask = tokenizer.encode_example(row, loss_on)
    assert tokens.dtype == np.int32
    assert mask.dtype == np.float32
    assert len(tokens) == len(mask)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return [
        tokenizer._tokenizer.decode(tokens[a:b], skip_special_tokens=False)
        for a, b in zip(edges[::2], edges[1::2], strict=True)
    ]


def test_a_completion_is_trained_on_with_its_end_token(characters: Callable) -> None:
    tokenizer = characters([{"prompt": "12=", "completion": "3"}])
    tokens, mask = tokenizer.encode_example({"prompt": "12=", "completion": "3"}, "completion")
    assert tokens.tolist() == [3, 4, 6, 5, 1]
    assert mask.tolist() == [0, 0, 0, 1, 1]


def test_loss_on_all_covers_everything_but_the_first_token(characters: Callable) -> None:
    tokenizer = characters([{"prompt": "12=", "completion": "3"}])
    _, mask = tokenizer.encode_example({"prompt": "12=", "completion": "3"}, "all")
    assert mask.tolist() == [0, 1, 1, 1, 1]


def test_the_first_token_is_never_trained_on_even_without_a_prompt(characters: Callable) -> None:
    tokenizer = characters([{"prompt": "12", "completion": "3"}])
    assert tokenizer.encode_example({"completion": "12"}, "completion")[1].tolist() == [0, 1, 1]


@pytest.mark.parametrize("prompt", ["how many clips ", CHAT[:3]])
def test_an_example_begins_with_the_tokens_of_its_prompt(prompt: object, bpe: Callable) -> None:
    tokenizer = bpe([{"prompt": "how many clips", "completion": "many clips"}] * 9)
    tokens, _ = tokenizer.encode_example({"prompt": prompt, "completion": "clips"}, "completion")
    asked = tokenizer.encode_prompt(prompt)
    assert tokens[: len(asked)].tolist() == asked.tolist()
    assert tokenizer.decode(tokens[len(asked) :]) == "clips"


def test_assistant_turns_are_trained_on_up_to_their_end_token(characters: Callable) -> None:
    tokenizer = characters([{"messages": CHAT}])
    assert trained_text(tokenizer, {"messages": CHAT}) == ["22<eos>", "44<eos>"]


def test_messages_as_completion_leave_the_prompt_alone(characters: Callable) -> None:
    tokenizer = characters([{"messages": CHAT}])
    assert trained_text(tokenizer, {"prompt": CHAT[:3], "completion": CHAT[3:]}) == ["44<eos>"]
    assert trained_text(tokenizer, {"prompt": "1", "completion": CHAT[1:2]}) == ["22<eos>"]


def test_a_chat_template_without_end_token_gets_one_at_the_end(characters: Callable) -> None:
    plain = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    plain += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    tokenizer = characters([{"messages": CHAT}], chat_template=plain)
    assert trained_text(tokenizer, {"messages": CHAT}) == ["22\n", "44\n<eos>"]


def test_a_marked_template_decides_what_is_trained_on(characters: Callable) -> None:
    marked = (
        "{% for m in messages %}{{ '[' + m.role + ']' }}"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token + '\n' }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    )
    tokenizer = characters([{"messages": CHAT}], chat_template=marked)
    assert trained_text(tokenizer, {"messages": CHAT}) == ["22<eos>", "44<eos>"]
    assert trained_text(tokenizer, {"prompt": CHAT[:3], "completion": CHAT[3:]}) == ["44<eos>"]


def test_a_marked_template_that_closes_turns_otherwise_ends_with_the_end_token(characters: Callable) -> None:
    marked = (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{{ '|\n' }}{% else %}{{ m.content }}:{% endif %}{% endfor %}"
    )
    tokenizer = characters([{"messages": CHAT}], chat_template=marked)
    tokens, _ = tokenizer.encode_example({"messages": CHAT}, "completion")
    assert tokenizer.decode(tokens) == "1:22|\n3:44"
    assert tokens[-1] == 1
    assert trained_text(tokenizer, {"messages": CHAT}) == ["22", "44<eos>"]


def test_a_template_that_changes_earlier_turns_is_refused(characters: Callable) -> None:
    shifting = "{% for m in messages %}{{ m.role if loop.last else 'x' }}{{ m.content }}{% endfor %}"
    tokenizer = characters([{"messages": CHAT}], chat_template=shifting)
    with pytest.raises(DataError) as caught:
        tokenizer.encode_example({"messages": CHAT, "__where__": "chat.jsonl:4"}, "completion")
    assert str(caught.value) == (
        "chat.jsonl:4: the chat template is not prefix-stable: what it asks the model to go on with at message 3, "
        "'x1x22user3', is not how it renders the conversation with that message, so the assistant's tokens cannot be "
        "told apart\n"
        "    give the answer as text (prompt and completion: it is trained on to the letter), set "
        "chat_template_kwargs, or set tokenizer.chat_template to one that renders every turn on its own"
    )


def test_a_template_that_refuses_the_messages_is_quoted(characters: Callable) -> None:
    strict = "{{ raise_exception('roles must alternate') if messages|length > 1 else messages[0].content }}"
    tokenizer = characters([{"prompt": "1"}], chat_template=strict)
    with pytest.raises(DataError) as caught:
        tokenizer.encode_example({"messages": CHAT}, "completion")
    assert str(caught.value) == "a row: the chat template refuses the messages: roles must alternate"


def test_messages_without_an_assistant_are_refused(characters: Callable) -> None:
    tokenizer = characters([{"messages": CHAT}])
    with pytest.raises(DataError) as caught:
        tokenizer.encode_example({"messages": CHAT[:1], "__where__": "a.jsonl:1"}, "completion")
    assert str(caught.value) == "a.jsonl:1: there is no assistant message to learn from"


def test_an_empty_answer_is_just_its_end_token_or_an_error(characters: Callable) -> None:
    silent = {"messages": [CHAT[0], {"role": "assistant", "content": ""}]}
    assert trained_text(characters([silent]), silent) == ["<eos>"]
    bare = characters([silent], chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(DataError) as caught:
        bare.encode_example(silent, "completion")
    assert str(caught.value) == "a row: the assistant's messages are empty"


def test_a_row_with_nothing_to_learn_lists_its_columns(characters: Callable) -> None:
    tokenizer = characters([{"prompt": "1"}])
    with pytest.raises(DataError) as caught:
        tokenizer.encode_example({"prompt": "1", "answer": "2", "__where__": "a.jsonl:3"}, "completion")
    assert str(caught.value) == (
        "a.jsonl:3: there is no 'completion' and no 'messages' (columns: prompt, answer)\n"
        "    map one in the data section, e.g. completion: answer"
    )


def test_decoding_leaves_special_tokens_out_and_takes_read_only_arrays(characters: Callable) -> None:
    tokenizer = characters([{"prompt": "1 2"}])
    tokens = np.append(tokenizer.encode_prompt("1 2"), [1, 0]).astype(np.int32)
    tokens.setflags(write=False)
    assert tokenizer.decode(tokens) == "1 2"
    assert tokenizer.decode(tokens.tolist()) == "1 2"


def test_a_chat_template_file_is_read_and_saved(characters: Callable, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages[0].content }}!")
    tokenizer = characters([{"prompt": [{"role": "user", "content": "1"}]}], chat_template=str(tmp_path / "chat.jinja"))
    assert tokenizer.decode(tokenizer.encode_prompt([{"role": "user", "content": "1"}])) == "1!"
    tokenizer.save(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == "{{ messages[0].content }}!"


def test_a_missing_chat_template_file_is_named(characters: Callable, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        characters([{"prompt": "1"}], chat_template=str(tmp_path / "no.jinja"))
    assert str(caught.value) == (
        f"tokenizer.chat_template: no such file: {tmp_path / 'no.jinja'}\n"
        "    give a file, or the Jinja text itself (it has a '{')"
    )


def test_encoding_a_short_example_costs_microseconds(characters: Callable) -> None:
    row = {"prompt": "12+34=", "completion": "640"}
    tokenizer = characters([row])
    started = time.process_time()
    for _ in range(1000):
        tokenizer.encode_example(row, "completion")
    assert (time.process_time() - started) / 1000 < 300e-6


TOOL_TALK = [
    {"role": "user", "content": "12"},
    {"role": "assistant", "content": "21"},
    {"role": "tool", "content": "1"},
    {"role": "assistant", "content": "2"},
]


def test_a_chat_with_replies_has_the_tokens_of_the_same_conversation_in_training(characters: Callable) -> None:
    tokenizer = characters([{"messages": TOOL_TALK}])
    turns = [np.array([*tokenizer.encode_prompt(text), tokenizer._eos]) for text in ("21", "2")]
    reply = tokenizer.encode_reply(TOOL_TALK[2:3], chat=True, ended=True)
    rolled_out = np.concatenate([tokenizer.encode_prompt(TOOL_TALK[:1]), turns[0], reply, turns[1]])
    trained, mask = tokenizer.encode_example({"messages": TOOL_TALK}, "completion")
    assert rolled_out.tolist() == trained[: len(rolled_out)].tolist()
    assert tokenizer.decode(trained[len(rolled_out) :]) == "\n", "the end of the line is not generated"
    assert mask[: len(rolled_out)].sum() == len(turns[0]) + len(turns[1])
    assert tokenizer.decode(reply) == "\ntool: 1\nassistant: "


def test_a_turn_that_did_not_end_is_closed_before_the_reply(characters: Callable) -> None:
    tokenizer = characters([{"messages": TOOL_TALK}])
    ended, cut = (tokenizer.encode_reply(TOOL_TALK[2:3], chat=True, ended=e) for e in (True, False))
    assert cut.tolist() == [tokenizer._eos, *ended.tolist()]


def test_a_text_is_continued_with_the_contents_alone(characters: Callable) -> None:
    tokenizer = characters([{"prompt": "123"}], bos=True)
    reply = tokenizer.encode_reply(
        [{"role": "tool", "content": "1"}, {"role": "user", "content": "2"}], chat=False, ended=True
    )
    assert reply.dtype == np.int32
    assert reply.tolist() == tokenizer.encode_prompt("12")[1:].tolist(), "no second <bos>"


def test_a_template_that_rewrites_what_the_assistant_wrote_cannot_be_continued(characters: Callable) -> None:
    rewrites = "{% for m in messages %}{{ m.role + ':' + m.content | upper }}{% endfor %}"
    with pytest.raises(DataError) as caught:
        characters([{"prompt": "1"}], chat_template=rewrites).encode_reply(TOOL_TALK[2:3], chat=True, ended=True)
    assert str(caught.value) == (
        "the chat template does not render an assistant's message as it is, once, so an environment's messages "
        "cannot be put after it\n    set tokenizer.chat_template to one that does"
    )


def test_a_template_sees_the_tools(characters: Callable) -> None:
    shows = "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}"
    shows += "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = characters([{"prompt": "12;add"}], chat_template=shows)
    prompt = tokenizer.encode_prompt(TOOL_TALK[:1], tools=[{"type": "function", "function": {"name": "add"}}])
    assert tokenizer.decode(prompt) == "add;12"
    assert tokenizer.decode(tokenizer.encode_prompt(TOOL_TALK[:1])) == "12"


def test_long_text_is_shortened_by_tokens(bpe: Callable) -> None:
    tokenizer = bpe([{"prompt": "how many clips", "completion": "many clips"}] * 9)
    assert tokenizer.shorten("many clips", 50) == "many clips"
    short = tokenizer.shorten("many clips many clips many clips", 3)
    assert len(tokenizer.encode_prompt(short)) <= 3
    assert "many clips many clips many clips".startswith(short)
    assert short


CHATML_WITH_TOOLS = (
    "{% for m in messages %}"
    "{% if m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% elif m.role == 'assistant' and not loop.last %}{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m.content + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As Qwen's: results in a user's turn, several in one, and a last answer that is rendered unlike earlier ones."""


def test_replies_follow_a_template_that_gathers_results_and_renders_the_last_answer_differently(
    characters: Callable,
) -> None:
    results = [{"role": "tool", "content": "42"}, {"role": "tool", "content": "43"}]
    talk = [*TOOL_TALK[:2], *results, TOOL_TALK[3]]
    tokenizer = characters([{"messages": talk}], alphabet="01234", chat_template=CHATML_WITH_TOOLS)
    assert tokenizer.decode(tokenizer.encode_reply(results, chat=True, ended=False)) == (
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n42\n</tool_response>\n<tool_response>\n43\n</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


def chatml() -> Any:
    """A Hugging Face tokenizer whose turns end with another token than its texts."""
    return tokenizer_of(ChatModel(special=("<s>", "</s>", "<pad>", "<|end|>"), template=PHI3))


def loaded(tokenizer: Any, folder: Path, hf: Callable, **fields: Any) -> Any:
    tokenizer.save_pretrained(folder)
    return hf(str(folder), **fields)


def test_a_text_that_was_rendered_elsewhere_gets_no_second_opening_or_end_token(hf: Callable, tmp_path: Path) -> None:
    made = chatml()
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = loaded(made, tmp_path, hf)
    ids = tokenizer.encode_prompt("hi").tolist()
    assert ids == made("hi")["input_ids"]
    assert tokenizer.encode_prompt("<s>hi").tolist() == ids
    for prompt in ("hi", "<s>hi"):
        for completion in (" 42", " 42</s>"):
            tokens, mask = tokenizer.encode_example({"prompt": prompt, "completion": completion}, "completion")
            assert tokens.tolist() == [*ids, *made.encode(" 42</s>", add_special_tokens=False)]
            assert mask[: len(ids)].sum() == 0
            assert mask[len(ids) :].all()


def test_a_completion_that_ends_with_the_templates_end_token_is_not_ended_twice(hf: Callable, tmp_path: Path) -> None:
    made = chatml()
    tokenizer = loaded(made, tmp_path, hf)
    for completion in ("42", "42<|end|>", "42<|end|>\n"):
        row = {"prompt": [{"role": "user", "content": "hi"}], "completion": completion}
        assert trained_text(tokenizer, row) == ["42<|end|>"]


def test_named_templates_are_chosen_as_transformers_chooses_them(hf: Callable, tmp_path: Path) -> None:
    made = chatml()
    named = {"default": PHI3, "tool_use": "{{ tools[0].function.name }}" + PHI3, "rag": "RAG" + PHI3}
    made.chat_template = named
    talk, tools = [{"role": "user", "content": "hi"}], [{"type": "function", "function": {"name": "add"}}]
    tokenizer = loaded(made, tmp_path, hf)
    for options in ({}, {"tools": tools}):
        expected = made.apply_chat_template(talk, add_generation_prompt=True, return_dict=False, **options)
        assert tokenizer.encode_prompt(talk, **options).tolist() == expected
    expected = made.apply_chat_template(talk, chat_template="rag", add_generation_prompt=True, return_dict=False)
    assert hf(str(tmp_path), chat_template_name="rag").encode_prompt(talk).tolist() == expected
    with pytest.raises(DataError) as caught:
        hf(str(tmp_path), chat_template_name="rog")
    assert str(caught.value) == (
        "tokenizer.chat_template_name: there is no chat template 'rog'\n    the tokenizer has default, rag, tool_use"
    )
    del named["default"]
    made.chat_template = named
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="several chat templates"):
        loaded(made, tmp_path / "other", hf).encode_prompt(talk)


@pytest.mark.parametrize(
    "keys", [{"weight": 0}, {"train": False}, {"training": 0.0}, {"loss": False}, {"loss_mask": 0}, {"masked": True}]
)
def test_turns_are_left_out_by_the_keys_of_other_programs(keys: dict[str, Any], characters: Callable) -> None:
    tokenizer = characters([{"messages": CHAT}])
    assert trained_text(tokenizer, {"messages": [CHAT[0], {**CHAT[1], **keys}, *CHAT[2:]]}) == ["44<eos>"]
    assert trained_text(tokenizer, {"messages": [*CHAT[:3], {**CHAT[3], **keys}]}) == ["22<eos>"]
    marked = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    other = characters([{"messages": CHAT}], chat_template=marked)
    assert trained_text(other, {"messages": [CHAT[0], {**CHAT[1], **keys}, *CHAT[2:]]}) == ["44<eos>"]
    with pytest.raises(DataError) as caught:
        tokenizer.encode_example({"messages": [CHAT[0], {**CHAT[1], **keys}]}, "completion")
    assert str(caught.value).startswith("a row: every assistant message is marked as not to be trained on\n")


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("template", [ZEPHYR, MISTRAL, LLAMA2])
def test_sentencepiece_tokenizers_give_the_tokens_of_the_whole(
    scheme: str, template: str, hf: Callable, tmp_path: Path
) -> None:
    made = metaspace(scheme)
    made.chat_template = template
    tokenizer = loaded(made, tmp_path, hf)
    expected = made.apply_chat_template(CHAT, return_dict=False)
    tokens, mask = tokenizer.encode_example({"messages": CHAT}, "all")
    assert tokens.tolist() == expected
    prompt = tokenizer.encode_prompt(CHAT[:3])
    assert prompt.tolist() == made.apply_chat_template(CHAT[:3], add_generation_prompt=True, return_dict=False)
    assert tokens[: len(prompt)].tolist() == prompt.tolist()
    tokens, mask = tokenizer.encode_example({"messages": CHAT}, "completion")
    first, second = (np.flatnonzero(np.diff([0, *mask, 0]))[i : i + 2] for i in (0, 2))
    turns = [tokens[a:b] for a, b in (first, second)]
    reply = tokenizer.encode_reply(CHAT[2:3], chat=True, ended=True)
    rolled_out = np.concatenate([tokenizer.encode_prompt(CHAT[:1]), turns[0], reply, turns[1]])
    assert rolled_out.tolist() == expected[: len(rolled_out)]


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_a_text_goes_on_without_a_space_that_it_does_not_have(scheme: str, hf: Callable, tmp_path: Path) -> None:
    made = metaspace(scheme)
    tokenizer = loaded(made, tmp_path, hf)
    tokens, mask = tokenizer.encode_example({"prompt": "q: ab", "completion": "cd ef"}, "completion")
    assert made.convert_ids_to_tokens(tokens[mask == 1]) == ["c", "d", "▁", "e", "f", "</s>"]
    assert tokens[:-1].tolist() == made.encode("q: abcd ef", add_special_tokens=False)


def test_where_a_token_straddles_the_boundary_the_prompt_is_that_of_rollouts(bpe: Callable) -> None:
    tokenizer = bpe([{"prompt": "many clips", "completion": "many clips"}] * 9)
    row = {"prompt": "many cl", "completion": "ips"}
    prompt = tokenizer.encode_prompt("many cl").tolist()
    assert tokenizer.encode_prompt("many clips")[: len(prompt)].tolist() != prompt
    tokens, _ = tokenizer.encode_example(row, "completion")
    assert tokens[: len(prompt)].tolist() == prompt
    assert tokenizer.decode(tokens) == "many clips"


def metaspace(scheme: str) -> Any:
    """A tokenizer of letters that treats spaces as SentencePiece does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = "▁abcdefghijklmnopqrstuvwxyz|<>[]/\n:0123456789IANST"
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<unk>", *dict.fromkeys(letters)])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    raw.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    raw.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
