import numpy as np
import pytest
from rl_core.errors import DataError
from rl_rollout.prompts import encode_prompt


class Letters:
    """A tokenizer of single letters."""

    def encode_prompt(self, prompt):
        return np.array([ord(c) for c in prompt], np.int32)

    def decode(self, tokens):
        return "".join(chr(t) for t in tokens)


def test_a_prompt_that_leaves_no_room_names_its_row():
    with pytest.raises(DataError) as raised:
        encode_prompt(
            {"prompt": "abcdef", "__where__": "train.jsonl:7"}, tokenizer=Letters(), max_length=8, max_new_tokens=4
        )
    assert str(raised.value) == (
        "train.jsonl:7: the prompt has 6 tokens; with generator.max_new_tokens 4 that is more than model.max_length 8\n"
        "    raise model.max_length, lower generator.max_new_tokens, or drop the row"
    )


def test_a_row_without_a_prompt_lists_its_columns():
    with pytest.raises(DataError) as raised:
        encode_prompt(
            {"question": "x", "__where__": "train.jsonl:1"}, tokenizer=Letters(), max_length=8, max_new_tokens=4
        )
    assert str(raised.value) == (
        "train.jsonl:1: there is no 'prompt' column (columns: question)\n"
        "    map one in the data section, e.g. prompt: question"
    )


def test_a_row_of_eval_data_names_its_own_section():
    row = {"prompt": None, "messages": [], "answer": "2", "__where__": "eval.jsonl:4"}
    with pytest.raises(DataError) as raised:
        encode_prompt(row, tokenizer=Letters(), max_length=8, max_new_tokens=4, section="eval_data")
    assert str(raised.value) == (
        "eval.jsonl:4: there is no 'prompt' column (columns: prompt, messages, answer)\n"
        "    map one in the eval_data section, e.g. prompt: question"
    )


def test_a_rows_template_variables_reach_the_tokenizer_or_are_refused() -> None:
    class Shows(Letters):
        def encode_prompt(self, prompt, *, tools=(), template_kwargs=None):
            return super().encode_prompt(f"{len(tools)}{template_kwargs}")

    row = {"prompt": [{"role": "user", "content": "hi"}], "tools": [{"name": "a"}], "chat_template_kwargs": {"b": 1}}
    limits = {"max_length": 64, "max_new_tokens": 4}
    expected = Letters().encode_prompt("1{'b': 1}").tolist()
    assert encode_prompt({**row, "__where__": "a:1"}, tokenizer=Shows(), **limits).tolist() == expected
    with pytest.raises(DataError) as caught:
        encode_prompt({**row, "__where__": "a:1"}, tokenizer=Letters(), **limits)
    assert str(caught.value) == "a:1: the tokenizer takes no template_kwargs, which the row or the environment has"
