"""Values of sampling fields that make no sense are found before anything starts."""

from __future__ import annotations

import pytest

ROLLOUTS = """
model: {init: {architecture: qwen2, hidden_size: 8, layers: 1, heads: 2}, max_length: 64}
tokenizer: {name: letters}
algorithm: {name: clip}
backend: {name: tiny}
data: {name: lines, path: train.txt}
generator: {name: sampler, max_new_tokens: 8}
rewards: [{name: digits}]
run: {name: demo, steps: 2}
"""


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stop", '[""]', "a stop string cannot be empty: every completion would end with its first token; remove it"),
        ("stop", '["a", ""]', "a stop string cannot be empty"),
        ("stop", '["a", "b", "a"]', "the stop string 'a' is given twice; remove one"),
        ("temperature", ".inf", "must be a finite number"),
        ("temperature", ".nan", "must be"),
        ("temperature", "0", "must be more than 0"),
        ("temperature", "-1", "must be more than 0"),
        ("temperature", "1.0e-30", "must be at least 1e-05"),
        ("top_p", "0", "must be more than 0"),
        ("top_p", "1.5", "must be at most 1"),
        ("top_p", ".nan", "must be"),
        ("top_k", "-1", "must be at least 0"),
        ("max_new_tokens", "0", "must be at least 1"),
    ],
)
def test_a_sampling_value_that_makes_no_sense_is_an_error_in_its_line(key, value, message, problems_of):
    given = f"{key}: {value}" if key == "max_new_tokens" else f"max_new_tokens: 8, {key}: {value}"
    text = ROLLOUTS.replace("max_new_tokens: 8", given)
    (problem,) = problems_of(text)
    assert problem.startswith("c.yaml:6: generator.")
    assert message in problem


@pytest.mark.parametrize("stop", ['["\\n\\n"]', '["\\n", "\\n\\n"]', '[" "]', '["<|im_end|>", "é"]'])
def test_stop_strings_of_white_space_and_such_that_share_text_are_fine(stop, config_of):
    assert config_of(ROLLOUTS.replace("max_new_tokens: 8", f"max_new_tokens: 8, stop: {stop}")) is not None
