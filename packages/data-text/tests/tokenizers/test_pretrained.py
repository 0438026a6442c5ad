"""Loading the tokenizers of existing models, from local folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import public_tokenizers
import pytest
from rl_core.errors import DataError, EnvironmentProblem
from rl_data_text.config import HfTokenizerConfig


def test_a_saved_tokenizer_is_loaded_from_the_model_folder(bpe: Callable, hf: Callable, tmp_path: Path) -> None:
    bpe([{"prompt": "some clips"}]).save(str(tmp_path))
    assert hf(str(tmp_path)).decode(hf(str(tmp_path)).encode_prompt("some clips")) == "some clips"


def test_tokenizer_path_wins_over_the_model(bpe: Callable, hf: Callable, tmp_path: Path) -> None:
    bpe([{"prompt": "some clips"}]).save(str(tmp_path))
    assert hf("/no/such/model", path=str(tmp_path)).vocab_size == hf(str(tmp_path)).vocab_size


def test_a_folder_without_a_tokenizer_says_what_it_holds(hf: Callable, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(DataError) as caught:
        hf(str(tmp_path))
    assert str(caught.value) == (
        f"the folder {tmp_path} has no tokenizer (no tokenizer.json; it holds config.json, model.safetensors)\n"
        "    copy the model's tokenizer files there, or set tokenizer.path to a folder that has them"
    )


def test_a_missing_folder_is_not_looked_for_on_the_hub(hf: Callable, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        hf(str(tmp_path / "no"))
    assert str(caught.value) == (
        f"the tokenizer folder {tmp_path / 'no'} does not exist\n    check model.path (or tokenizer.path)"
    )


def test_a_damaged_tokenizer_is_an_error_that_names_the_folder(bpe: Callable, hf: Callable, tmp_path: Path) -> None:
    bpe([{"prompt": "some clips"}]).save(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(EnvironmentProblem) as caught:
        hf(str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}/tokenizer.json is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1)\n    copy or download it again"
    )
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "No", "vocab": {"a": 0}}}')
    with pytest.raises(EnvironmentProblem) as caught:
        hf(str(tmp_path))
    first, last = str(caught.value).split("\n", 1)[0], str(caught.value).rsplit("\n", 1)[1]
    assert first.startswith(f"cannot read the tokenizer of {tmp_path}: ")
    assert last == "    check model.path (or tokenizer.path); a hub id needs the network or a cached copy"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", "{", "tokenizer.json is not JSON: "),
        ("tokenizer.json", '{"model": {"type": "BPE"}}', "tokenizer.json has no vocabulary"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json does not hold an object, but a list"),
        ("special_tokens_map.json", "\ufeff{}", "special_tokens_map.json starts with a byte order mark"),
        ("tokenizer.json", None, "tokenizer.json is a folder, not a file"),
        ("", "", "the folder {path} has no tokenizer (no tokenizer.json; it holds nothing)"),
    ],
)
@pytest.mark.parametrize("own", [False, True], ids=["model.path", "tokenizer.path"])
def test_a_damaged_tokenizer_is_found_by_the_check(
    own: bool, name: str, content: str, reason: str, tmp_path: Path
) -> None:
    if content is None:
        (tmp_path / name).mkdir()
    elif name:
        (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
        (tmp_path / name).write_text(content)
    config = HfTokenizerConfig(name="hf", path=str(tmp_path) if own else None)
    stage = SimpleNamespace(model=SimpleNamespace(path="/no/such/model" if own else str(tmp_path)))
    (problem,) = config.problems(stage)
    assert reason.format(path=tmp_path) in problem.message
    assert problem.path == ("path" if own else "")
    assert problem.fix


def test_a_tokenizer_of_the_hub_or_of_a_model_that_is_not_there_yet_is_not_looked_at() -> None:
    for path in ("org/model", "/no/such/model", None):
        stage = SimpleNamespace(model=SimpleNamespace(path=path))
        assert list(HfTokenizerConfig(name="hf").problems(stage)) == []


def test_a_model_from_scratch_has_no_tokenizer_to_load(hf: Callable) -> None:
    with pytest.raises(DataError) as caught:
        hf(None)
    assert str(caught.value) == (
        "tokenizer 'hf' has nothing to load: the model starts from scratch\n"
        "    set tokenizer.path to a folder with a tokenizer, or build one from the data with "
        "tokenizer: {name: bpe} or {name: characters}"
    )


def test_a_tokenizer_without_an_end_token_is_refused(bpe: Callable, hf: Callable, tmp_path: Path) -> None:
    bpe([{"prompt": "some clips"}]).save(str(tmp_path))
    fields = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del fields["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    with pytest.raises(DataError) as caught:
        hf(str(tmp_path))
    assert str(caught.value) == (
        "the tokenizer has no end-of-sequence token, so no completion could ever end\n"
        '    set "eos_token" in its tokenizer_config.json'
    )


def test_messages_without_any_chat_template_are_an_error(bpe: Callable, hf: Callable, tmp_path: Path) -> None:
    bpe([{"prompt": "some clips"}]).save(str(tmp_path))
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(DataError) as caught:
        hf(str(tmp_path)).encode_prompt([{"role": "user", "content": "hi"}])
    assert str(caught.value) == (
        "the tokenizer has no chat template, but the row has chat messages\n"
        "    set tokenizer.chat_template to a Jinja template or a file with one, or use text prompts"
    )


def test_truncation_settings_of_a_tokenizer_file_do_not_cut_texts(bpe: Callable, hf: Callable, tmp_path: Path) -> None:
    bpe([{"prompt": "some clips"}]).save(str(tmp_path))
    fields = json.loads((tmp_path / "tokenizer.json").read_text())
    fields["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    assert hf(str(tmp_path)).decode(hf(str(tmp_path)).encode_prompt("zyx wvu tsr")) == "zyx wvu tsr"


def test_a_byte_level_tokenizer_under_the_class_name_of_another_kind_keeps_its_spaces(
    hf: Callable, tmp_path: Path
) -> None:
    """As DeepSeek-R1's distillations have it: class LlamaTokenizerFast, model type llama, a byte-level tokenizer."""
    from tokenizers import Tokenizer

    for file in public_tokenizers.folder("deepseek_v3").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    expected = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(
        "It is 7.\n\nAnd 8", add_special_tokens=False
    )
    loaded = hf(str(tmp_path))
    assert loaded.encode_prompt("It is 7.\n\nAnd 8").tolist()[-len(expected.ids) :] == expected.ids
    assert loaded.decode(expected.ids) == "It is 7.\n\nAnd 8"
