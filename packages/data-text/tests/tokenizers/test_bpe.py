"""The BPE tokenizer: it learns merges, expresses everything, and is reproducible."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rl_core.errors import DataError

AWKWARD = " 1 +\n\n2  = it's 1,234\r\n\t é漢😀 <x>  "
ROWS = [{"prompt": "the clips that she sold to the other friends", "completion": f"the clips {i}"} for i in range(20)]


def test_frequent_words_become_one_token(bpe: Callable) -> None:
    tokenizer = bpe(ROWS)
    assert len(tokenizer.encode_prompt(" clips")) == 1
    assert tokenizer.special_tokens == {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    assert 258 < tokenizer.vocab_size <= 320


def test_every_text_comes_back_exactly(bpe: Callable) -> None:
    tokenizer = bpe(ROWS)
    assert tokenizer.decode(tokenizer.encode_prompt(AWKWARD)) == AWKWARD


def test_the_same_rows_give_the_same_tokenizer(bpe: Callable, tmp_path: Path) -> None:
    for name in ("one", "two"):
        bpe(ROWS).save(str(tmp_path / name))
    one, two = ((tmp_path / name / "tokenizer.json").read_text() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("model_type", [None, "qwen2", "qwen3", "llama"])
def test_a_saved_folder_loads_with_auto_tokenizer_and_keeps_text_and_ids(
    model_type: str | None, bpe: Callable, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = bpe(ROWS)
    tokenizer.save(str(tmp_path))
    if model_type is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = loaded(AWKWARD).input_ids
    assert ids == tokenizer.encode_prompt(AWKWARD).tolist()
    assert loaded.decode(ids) == AWKWARD
    assert (len(loaded), loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.vocab_size, 1, 0)


def test_no_rows_are_an_error(bpe: Callable) -> None:
    with pytest.raises(DataError, match="tokenizer 'bpe': there are no rows to train it on"):
        bpe([])
