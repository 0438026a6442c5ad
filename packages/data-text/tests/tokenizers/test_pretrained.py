"""Loading the tokenizers of existing models, from local folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rl_core.errors import DataError, EnvironmentProblem


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
    first, last = str(caught.value).split("\n", 1)[0], str(caught.value).rsplit("\n", 1)[1]
    assert first.startswith(f"cannot read the tokenizer of {tmp_path}: ")
    assert last == "    check model.path (or tokenizer.path); a hub id needs the network or a cached copy"


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
