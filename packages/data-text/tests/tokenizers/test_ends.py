"""Where completions end, what they never hold, and which special tokens are text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rl_core.errors import DataError, EnvironmentProblem
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
LINES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., str]:
    """A model folder's tokenizer and configs: special tokens from id 0 on, ``<eos>`` the first, then single bytes."""

    def write(special: Sequence[str] = (), *, template: Any = None, pad: str | None = None, **files: Any) -> str:
        names = ["<eos>", "<bos>", *special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
        raw = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        raw.add_special_tokens(["<eos>", "<bos>", *special])
        made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", bos_token="<bos>", pad_token=pad)
        made.chat_template = template
        made.save_pretrained(tmp_path)
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return str(tmp_path)

    return write


@pytest.mark.parametrize(
    ("special", "template", "ends"),
    [
        (["<|im_start|>", "<|im_end|>"], CHATML, (0, 3)),
        (["<start_of_turn>", "<end_of_turn>"], GEMMA, (0, 3)),
        (["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], LLAMA3, (0, 4)),
        (["<|user|>", "<|assistant|>", "<|end|>"], PHI, (0, 4)),
        (["<x>"], LINES, (0,)),
        (["<x>"], LINES.replace("\n", "{{ eos_token }}"), (0,)),
        (["<x>"], "{{ raise_exception('only with a system message') }}", (0,)),
        (["<x>"], None, (0,)),
    ],
)
def test_a_completion_ends_with_what_the_template_puts_after_an_assistants_text(
    special: list[str], template: str | None, ends: tuple[int, ...], folder: Callable, hf: Callable
) -> None:
    assert hf(folder(special, template=template)).end_token_ids == ends


def test_a_completion_ends_as_the_template_that_the_config_chooses_ends_a_turn(folder: Callable, hf: Callable) -> None:
    short = "{% for m in messages %}{{ m.content }}{{ '<short>' if brief else '<long>' }}{% endfor %}"
    path = folder(["<|im_start|>", "<|im_end|>", "<long>", "<short>"], template={"default": CHATML, "other": short})
    assert hf(path).end_token_ids == (0, 3)
    assert hf(path, chat_template_name="other").end_token_ids == (0, 4)
    assert hf(path, chat_template_name="other", chat_template_kwargs={"brief": True}).end_token_ids == (0, 5)


@pytest.mark.parametrize(
    ("files", "ends"),
    [
        ({"generation_config": {"eos_token_id": [3, 0]}}, (0, 3)),
        ({"generation_config": {"eos_token_id": 3}}, (0, 3)),
        ({"generation_config": {"eos_token_id": [0, 2, 4]}, "config": {"eos_token_id": [3]}}, (0, 2, 4, 3)),
        ({"config": {"text_config": {"eos_token_id": [0, 2]}}}, (0, 2)),
        ({"config": {"eos_token_id": 3}}, (0, 3)),
        ({"config": {"eos_token_id": 77}}, (0,)),  # a class's default, here a letter
        ({"generation_config": {"eos_token_id": [0, 100_000]}}, (0,)),  # no token of this tokenizer
        ({"generation_config": {"eos_token_id": None}, "config": {}}, (0,)),
    ],
)
def test_a_completion_ends_with_every_end_token_of_the_models_configs(
    files: dict[str, Any], ends: tuple[int, ...], folder: Callable, hf: Callable
) -> None:
    assert hf(folder(["<a>", "<b>", "<c>"], **files)).end_token_ids == ends


@pytest.mark.parametrize("value", ["2", [0, True], [[0]], 1.5])
def test_end_tokens_that_are_no_ids_are_an_error_that_names_the_file(
    value: object, folder: Callable, hf: Callable
) -> None:
    with pytest.raises(DataError, match=r"generation_config\.json: eos_token_id is .*, not a token id"):
        hf(folder(generation_config={"eos_token_id": value}))


def test_a_damaged_generation_config_is_named(folder: Callable, hf: Callable) -> None:
    path = folder()
    (Path(path) / "generation_config.json").write_text('{"eos_token_id": [')
    with pytest.raises(EnvironmentProblem, match=r"generation_config\.json is not JSON"):
        hf(path)


def test_a_turn_that_ended_with_any_end_token_is_not_closed_again(folder: Callable, hf: Callable) -> None:
    tokenizer = hf(folder(["<start_of_turn>", "<end_of_turn>"], template=GEMMA))
    says = [{"role": "tool", "content": "4"}]
    ended, cut = (tokenizer.encode_reply(says, chat=True, ended=e).tolist() for e in (True, False))
    assert cut == [3, *ended]
    assert tokenizer.decode(ended) == "\n<start_of_turn>tool\n4<end_of_turn>\n<start_of_turn>model\n"


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "weather"}</tool_call>',
        "<think>\nhm\n</think>\n\n42",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>42",
    ],
)
def test_special_tokens_that_mark_a_call_a_thought_or_a_channel_are_text(
    text: str, folder: Callable, hf: Callable
) -> None:
    special = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
    special += ["<|channel|>", "<|message|>", "<|start|>", "<|end|>"]
    tokenizer = hf(folder(special))
    written = tokenizer.encode_prompt(text)
    assert written[0] < 10, "a special token"
    assert tokenizer.decode([*written, 0]) == text


def test_decoding_leaves_out_opening_token_padding_and_the_ends_at_the_end(folder: Callable, hf: Callable) -> None:
    tokenizer = hf(folder(["<|im_end|>", "<pad>"], pad="<pad>", generation_config={"eos_token_id": [2, 0]}))
    a, b = tokenizer.encode_prompt("ab").tolist()
    assert tokenizer.decode([1, a, b, 2]) == "ab"
    assert tokenizer.decode([3, 3, a, 3, b, 0, 2, 3]) == "ab"
    assert tokenizer.decode([a, 2, b, 0]) == "a<|im_end|>b", "an end in the middle separates turns"
    assert tokenizer.decode(np.array([2], np.int32)) == ""


def test_an_end_token_that_also_opens_and_pads_is_no_text_at_either_end(folder: Callable, hf: Callable) -> None:
    path = folder()
    config = json.loads((Path(path) / "tokenizer_config.json").read_text())
    (Path(path) / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<eos>", "pad_token": "<eos>"}))
    tokenizer = hf(path)
    a, b = tokenizer.encode_prompt("ab").tolist()
    assert tokenizer.decode([0, a, 0, b, 0, 0]) == "a<eos>b"
    assert tokenizer.never_sampled == ()


def test_padding_unknown_and_fillers_of_built_tokenizers_are_never_sampled(
    characters: Callable, bpe: Callable, hf: Callable, tmp_path: Path
) -> None:
    built = characters([{"prompt": "12"}], vocab_size=8, bos=True)
    assert built.never_sampled == (0, 2, 6, 7), "<pad>, <unk>, <unused_0>, <unused_1>; not <eos> 1 and <bos> 3"
    assert built.decode([3, 4, 0, 6, 5, 7, 1]) == "12"
    assert bpe([{"prompt": "12"}]).never_sampled == (0,)
    built.save(str(tmp_path))
    loaded = hf(str(tmp_path))
    assert loaded.never_sampled == (0, 2, 6, 7), "a later stage loads it as any other tokenizer"
    assert loaded.end_token_ids == built.end_token_ids == (1,)


def test_ids_without_a_token_are_never_sampled(tmp_path: Path, hf: Callable) -> None:
    raw = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1, "b": 4}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>").save_pretrained(tmp_path)
    tokenizer = hf(str(tmp_path))
    assert (tokenizer.vocab_size, tokenizer.never_sampled) == (5, (2, 3))


def test_a_token_that_looks_like_a_filler_but_is_special_may_be_sampled(folder: Callable, hf: Callable) -> None:
    assert hf(folder(["<unused_0>"])).never_sampled == ()
