"""Samples to tokens: the same ones that training saw."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rl_core.contracts.reward import Sample
from rl_core.errors import DataError, EnvironmentProblem
from rl_reward_model.encoding import Encoder
from transformers import AutoTokenizer

MESSAGES = [{"role": "user", "content": "Hi"}]


def chat(completion: str) -> Sample:
    return Sample(row={"prompt": MESSAGES, "__where__": "train.jsonl:4"}, prompt="", completion=completion)


def message_of(encoder: Encoder, sample: Sample) -> str:
    with pytest.raises(DataError) as caught:
        encoder.encode([sample])
    return str(caught.value)


def test_texts_and_messages_have_the_tokens_of_training(folder: str, config: Callable, samples: list[Sample]) -> None:
    text = pytest.importorskip("rl_data_text.tokenizers.hf")
    configs = pytest.importorskip("rl_data_text.config")
    trained = text.HfTokenizer(configs.HfTokenizerConfig(name="hf"))
    trained.load(folder, [])
    samples = [*samples, chat("Hello.")]
    for tokens, sample in zip(Encoder(config()).encode(samples), samples, strict=True):
        expected, _ = trained.encode_example({**sample.row, "completion": sample.completion}, "all")
        assert tokens.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [*MESSAGES, {"role": "assistant", "content": "Well,"}]},
        {"prompt": MESSAGES, "tools": [{"function": {"name": "add"}}], "chat_template_kwargs": {"mood": "good"}},
        {"prompt": MESSAGES, "tools": '[{"function": {"name": "add"}}]', "chat_template_kwargs": '{"mood": "good"}'},
    ],
)
def test_tools_template_variables_and_begun_answers_have_the_tokens_of_training(
    row: dict, folder: str, config: Callable, tmp_path: Path
) -> None:
    text = pytest.importorskip("rl_data_text.tokenizers.hf")
    configs = pytest.importorskip("rl_data_text.config")
    path = tmp_path / "with-tools"
    shutil.copytree(folder, path)
    template = path / "chat_template.jinja"
    shows = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{{ mood }}"
    template.write_text(shows + template.read_text())
    trained = text.HfTokenizer(configs.HfTokenizerConfig(name="hf"))
    trained.load(str(path), [])
    expected, _ = trained.encode_example({**row, "completion": " yes."}, "all")
    sample = Sample(row=row, prompt="", completion=" yes.")
    assert Encoder(config(path=str(path))).encode([sample])[0].tolist() == expected.tolist()
    assert ("tools" in row) == (trained.decode(expected).startswith("addgood"))


def test_a_chat_ends_with_the_token_that_the_template_closes_a_turn_with(
    folder: str, config: Callable, tmp_path: Path
) -> None:
    path = tmp_path / "gemma-like"
    shutil.copytree(folder, path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<end_of_turn>\n{% endfor %}"
    tokenizer.save_pretrained(path)
    text = pytest.importorskip("rl_data_text.tokenizers.hf")
    configs = pytest.importorskip("rl_data_text.config")
    trained = text.HfTokenizer(configs.HfTokenizerConfig(name="hf"))
    trained.load(str(path), [])
    samples = [chat("Hello."), Sample(row={"prompt": "a"}, prompt="a", completion="b")]
    encoded = Encoder(config(path=str(path))).encode(samples)
    ends = tokenizer.convert_ids_to_tokens([int(tokens[-1]) for tokens in encoded])
    assert ends == ["<end_of_turn>", "<eos>"]
    for tokens, sample in zip(encoded, samples, strict=True):
        expected, _ = trained.encode_example({**sample.row, "completion": sample.completion}, "all")
        assert tokens.tolist() == expected.tolist()


def test_an_opening_token_is_kept(folder: str, config: Callable, tmp_path: Path) -> None:
    path = tmp_path / "llama-like"
    shutil.copytree(folder, path)
    file = path / "tokenizer.json"
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [1], "tokens": ["<bos>"]}},
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": template}))
    settings = path / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"bos_token": "<bos>"}))
    sample = Sample(row={"prompt": "a"}, prompt="a", completion="b")
    plain = Encoder(config()).encode([sample])[0].tolist()
    assert Encoder(config(path=str(path))).encode([sample])[0].tolist() == [1, *plain]


def test_a_conversation_can_be_rendered_whole(config: Callable, tokenizer) -> None:
    def text_of(**fields: str) -> str:
        return tokenizer.decode(Encoder(config(**fields)).encode([chat("Hello.")])[0])

    assert text_of() == "user: Hi\nassistant: Hello.<eos>"
    assert text_of(chat="conversation") == "user: Hi\nassistant: Hello.<eos>\n"


def test_a_long_sample_is_an_error_that_names_its_row(config: Callable, samples: list[Sample]) -> None:
    encoder = Encoder(config(max_tokens=34))
    assert len(encoder.encode(samples[:3])[1]) == 34
    assert message_of(encoder, samples[3]) == (
        "train.jsonl:4: prompt and completion have 64 tokens for reward 'model', max_tokens is 34\n"
        "    raise its max_tokens, or set on_long: truncate_left to keep only the end"
    )


def test_truncation_keeps_the_end_and_warns_once(
    config: Callable, samples: list[Sample], caplog: pytest.LogCaptureFixture
) -> None:
    encoder = Encoder(config(max_tokens=10, on_long="truncate_left"))
    whole = Encoder(config()).encode(samples)
    with caplog.at_level(logging.WARNING):
        cut = encoder.encode(samples)
    assert [t.tolist() for t in cut] == [t[-10:].tolist() for t in whole]
    assert caplog.messages == [
        "train.jsonl:2: prompt and completion have 34 tokens for reward 'model', max_tokens is 10: "
        "its beginning is cut off (and that of every longer sample)"
    ]


def test_a_row_without_a_prompt_is_named(config: Callable) -> None:
    sample = Sample(row={"__where__": "train.jsonl:9"}, prompt="?", completion="b")
    assert message_of(Encoder(config()), sample) == (
        "train.jsonl:9: reward 'model': the row has no prompt (text or a list of messages)\n"
        "    map one in the data section"
    )


def test_messages_without_a_chat_template_are_an_error(folder: str, config: Callable, tmp_path: Path) -> None:
    path = tmp_path / "plain"
    shutil.copytree(folder, path)
    (path / "chat_template.jinja").unlink()
    assert message_of(Encoder(config(path=str(path))), chat("Hello.")) == (
        "train.jsonl:4: reward 'model': the prompt is a list of messages, but the tokenizer of "
        f"{path} has no chat template\n    add a chat_template.jinja to that folder, or use text prompts"
    )


def test_learned_positions_limit_the_length(folder: str, config: Callable, tmp_path: Path) -> None:
    path = tmp_path / "gpt2"
    shutil.copytree(folder, path)
    fields = {"model_type": "gpt2", "n_positions": 32, "architectures": ["GPT2ForSequenceClassification"]}
    (path / "config.json").write_text(json.dumps(fields))
    assert Encoder(config(path=str(path))).limit == 32
    assert Encoder(config(path=str(path), max_tokens=16)).limit == 16
    with pytest.raises(EnvironmentProblem) as caught:
        Encoder(config(path=str(path), max_tokens=64))
    assert str(caught.value) == (
        f"reward 'model': max_tokens is 64, but {path} has positions for 32 tokens\n    lower max_tokens to 32"
    )


def test_a_damaged_tokenizer_is_an_error_that_names_the_folder(folder: str, config: Callable, tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    shutil.copytree(folder, path)
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(EnvironmentProblem) as caught:
        Encoder(config(path=str(path)))
    assert str(caught.value).startswith(f"cannot read the tokenizer of the reward model {path}: ")
    assert str(caught.value).endswith("\n    check path; a hub id needs the network or a cached copy")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 'a' * 10**10 }}", "it needs too much memory"),
        ("{{ raise_exception('no') }}", "the chat template refuses the messages: no"),
    ],
)
def test_a_template_that_runs_away_or_refuses_is_an_error_of_its_row(
    template: str, reason: str, folder: str, config: Callable, tmp_path: Path
) -> None:
    path = tmp_path / "odd"
    shutil.copytree(folder, path)
    (path / "chat_template.jinja").write_text(template)
    message = message_of(Encoder(config(path=str(path))), chat("Hello."))
    assert message.startswith(f"train.jsonl:4: reward 'model': {path}: the chat template ")
    assert reason in message


@pytest.mark.parametrize("tools", [[], [{"type": "function", "function": {"name": "add"}}]])
@pytest.mark.parametrize("begun", [False, True])
def test_a_conversation_is_rendered_as_transformers_renders_it(
    begun: bool, tools: list, folder: str, config: Callable, tmp_path: Path
) -> None:
    path = tmp_path / "named"
    shutil.copytree(folder, path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = {
        "default": tokenizer.chat_template,
        "tool_use": "{{ tools | tojson }}{{ mood }}" + tokenizer.chat_template,
    }
    tokenizer.save_pretrained(path)
    messages = [*MESSAGES, {"role": "assistant", "content": "Well, "}] if begun else MESSAGES
    row = {"prompt": messages, "tools": tools, "chat_template_kwargs": {"mood": "ü"}}
    (found,) = Encoder(config(path=str(path), chat="conversation")).encode([Sample(row=row, prompt="", completion="ö")])
    answered = [*MESSAGES, {"role": "assistant", "content": "Well, ö" if begun else "ö"}]
    expected = tokenizer.apply_chat_template(answered, tools=tools or None, mood="ü", tokenize=True, return_dict=False)
    assert found.tolist() == expected


def test_a_byte_level_tokenizer_under_the_class_name_of_another_kind_keeps_its_spaces(
    folder: str, config: Callable, tmp_path: Path
) -> None:
    """As DeepSeek-R1's distillations have it: class LlamaTokenizerFast, model type llama, a byte-level tokenizer."""
    path = tmp_path / "distilled"
    shutil.copytree(folder, path)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "LlamaTokenizerFast"}))
    fields = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**fields, "model_type": "llama"}))
    sample = Sample(row={"prompt": "It is 7.\n\nAnd 8"}, prompt="", completion=" too.")
    expected = Encoder(config()).encode([sample])[0]
    assert Encoder(config(path=str(path))).encode([sample])[0].tolist() == expected.tolist()
