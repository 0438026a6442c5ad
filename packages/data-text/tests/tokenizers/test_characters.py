"""The character tokenizer: its vocabulary, exact round trips, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rl_core.errors import DataError

AWKWARD = " 1 +\n\n2  = it's 1,234\r\n\t é漢😀 <x>  "
ROWS = [{"prompt": "12+34=", "completion": "64"}, {"prompt": AWKWARD}]


def test_every_character_is_one_token_after_the_special_ones(characters: Callable) -> None:
    tokenizer = characters([{"prompt": "2+1=", "answer": 3}])
    assert tokenizer.encode_prompt("1+2=3").tolist() == [4, 3, 5, 7, 6]
    assert tokenizer.encode_prompt("<pad><eos>").tolist() == [0, 1]
    assert tokenizer.vocab_size == 8
    assert tokenizer.special_tokens == {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}


def test_characters_outside_ascii_are_one_token_too(characters: Callable) -> None:
    tokenizer = characters([{"prompt": "é漢😀"}])
    assert len(tokenizer.encode_prompt("é漢😀")) == 3
    assert len(tokenizer.encode_prompt("漢é")) == 2


def test_text_comes_back_exactly(characters: Callable) -> None:
    tokenizer = characters(ROWS)
    tokens = tokenizer.encode_prompt(AWKWARD)
    assert len(tokens) == len(AWKWARD)
    assert tokenizer.decode(tokens) == AWKWARD


@pytest.mark.parametrize("model_type", [None, "qwen2", "qwen3", "llama"])
def test_a_saved_folder_loads_with_auto_tokenizer_and_keeps_text_and_ids(
    model_type: str | None, characters: Callable, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = characters(ROWS, vocab_size=128)
    tokenizer.save(str(tmp_path))
    if model_type is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = loaded(AWKWARD).input_ids
    assert ids == tokenizer.encode_prompt(AWKWARD).tolist()
    assert loaded.decode(ids) == AWKWARD
    assert (len(loaded), loaded.eos_token_id, loaded.pad_token_id) == (128, 1, 0)


def test_a_saved_folder_is_loaded_instead_of_building(characters: Callable, tmp_path: Path) -> None:
    from rl_data_text.config import CharactersConfig
    from rl_data_text.tokenizers.characters import CharacterTokenizer

    built = characters(ROWS)
    built.save(str(tmp_path))
    loaded = CharacterTokenizer(CharactersConfig(name="characters"))
    loaded.load(str(tmp_path), [{"prompt": "other"}])
    assert loaded.encode_prompt(AWKWARD).tolist() == built.encode_prompt(AWKWARD).tolist()
    with pytest.raises(DataError):
        loaded.encode_prompt("Z")


def test_an_unknown_character_is_named(characters: Callable) -> None:
    tokenizer = characters(ROWS)
    with pytest.raises(DataError) as caught:
        tokenizer.encode_prompt("12-34=")
    assert str(caught.value) == (
        "the tokenizer does not know the character '-' (U+002D) in '12-34='\n"
        "    add it to tokenizer.alphabet (a new model), or remove it from the data"
    )
    with pytest.raises(DataError) as caught:
        tokenizer.encode_example({"prompt": "1", "completion": "ñ", "__where__": "train.jsonl:7"}, "completion")
    assert str(caught.value).splitlines()[0] == (
        "train.jsonl:7: the tokenizer does not know the character 'ñ' (U+00F1) in 'ñ'"
    )
    with pytest.raises(DataError) as caught:
        characters([{"prompt": "<unk>"}]).encode_prompt("<unk>")
    assert str(caught.value) == "the text holds the tokenizer's own '<unk>'\n    remove it from the data"


def test_the_alphabet_adds_characters_and_vocab_size_fills_up(characters: Callable) -> None:
    tokenizer = characters([{"prompt": "1"}], alphabet="0123456789", vocab_size=32)
    assert tokenizer.encode_prompt("09").tolist() == [3, 12]
    assert tokenizer.vocab_size == 32
    assert tokenizer.decode([4, 31]) == "1", "a filler is no text"


def test_a_vocab_size_that_is_too_small_says_what_is_needed(characters: Callable) -> None:
    with pytest.raises(DataError) as caught:
        characters([{"prompt": "0123456789"}], vocab_size=10)
    assert str(caught.value) == (
        "tokenizer 'characters': the data needs 13 tokens, more than vocab_size 10\n"
        "    set tokenizer.vocab_size to 13 or more"
    )


def test_rows_without_text_are_an_error(characters: Callable) -> None:
    with pytest.raises(DataError) as caught:
        characters([])
    assert str(caught.value) == "tokenizer 'characters': the rows have no text\n    set tokenizer.alphabet"


def test_bos_opens_every_sequence_and_is_saved(characters: Callable, hf: Callable, tmp_path: Path) -> None:
    tokenizer = characters([{"prompt": "12"}], bos=True)
    assert tokenizer.encode_prompt("12").tolist() == [3, 4, 5]
    assert tokenizer.special_tokens["bos_token_id"] == 3
    tokenizer.save(str(tmp_path))
    assert hf(str(tmp_path)).encode_prompt("12").tolist() == [3, 4, 5]


def test_the_characters_of_the_chat_template_are_known(characters: Callable) -> None:
    chat = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    tokenizer = characters([{"messages": chat}, {"prompt": chat[:1]}])
    assert tokenizer.decode(tokenizer.encode_prompt(chat[:1])) == "user: 1\nassistant: "


def test_building_saving_and_loading_need_no_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from rl_data_text.config import CharactersConfig, HfTokenizerConfig
from rl_data_text.tokenizers.characters import CharacterTokenizer
from rl_data_text.tokenizers.hf import HfTokenizer
chat = [{{"role": "user", "content": "1"}}, {{"role": "assistant", "content": "2"}}]
built = CharacterTokenizer(CharactersConfig(name="characters"))
built.load(None, [{{"messages": chat}}])
built.encode_example({{"messages": chat}}, "completion")
built.save({str(tmp_path)!r})
loaded = HfTokenizer(HfTokenizerConfig(name="hf"))
loaded.load({str(tmp_path)!r}, [])
loaded.encode_prompt(chat)
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
