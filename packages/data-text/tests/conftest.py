"""Rows in the format of GSM8K, and the sources and tokenizers the tests build from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rl_data_text.config import BpeConfig, CharactersConfig, HfTokenizerConfig, JsonlConfig
from rl_data_text.sources.jsonl import JsonlSource
from rl_data_text.tokenizers.bpe import BpeTokenizer
from rl_data_text.tokenizers.characters import CharacterTokenizer
from rl_data_text.tokenizers.hf import HfTokenizer

GSM8K = [
    {
        "question": "Mia sold clips to 48 friends in April, and half as many in May. How many clips did she sell?",
        "answer": "Mia sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72 clips.\n#### 72",
    },
    {
        "question": "Tom earns $12 an hour. Yesterday he worked 50 minutes. How much did he earn?",
        "answer": "Tom earns 12/60 = $<<12/60=0.2>>0.2 per minute.\nHe earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
    },
    {
        "question": "A house cost $1,000 and gained 150% of that. What is it worth?",
        "answer": "It gained 1000*1.5 = $<<1000*1.5=1500>>1500.\nIt is worth <<1000+1500=2500>>2500.\n#### 2,500",
    },
]


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., str]:
    """Write lines (objects become JSON, strings stay as they are) and return the file's path."""

    def write(lines: list[Any], name: str = "train.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def gsm8k(write_lines: Callable[..., str]) -> str:
    """A JSON-lines file with three rows."""
    return write_lines(GSM8K)


@pytest.fixture
def jsonl() -> Callable[..., JsonlSource]:
    def build(path: str | list[str], **fields: Any) -> JsonlSource:
        return JsonlSource(JsonlConfig.model_validate({"name": "jsonl", "path": path, **fields}))

    return build


@pytest.fixture
def characters() -> Callable[..., CharacterTokenizer]:
    def build(rows: list[dict[str, Any]], **fields: Any) -> CharacterTokenizer:
        tokenizer = CharacterTokenizer(CharactersConfig.model_validate({"name": "characters", **fields}))
        tokenizer.load(None, rows)
        return tokenizer

    return build


@pytest.fixture
def bpe() -> Callable[..., BpeTokenizer]:
    def build(rows: list[dict[str, Any]], **fields: Any) -> BpeTokenizer:
        tokenizer = BpeTokenizer(BpeConfig.model_validate({"name": "bpe", "vocab_size": 320, **fields}))
        tokenizer.load(None, rows)
        return tokenizer

    return build


@pytest.fixture
def hf() -> Callable[..., HfTokenizer]:
    def build(model_path: str | None, **fields: Any) -> HfTokenizer:
        tokenizer = HfTokenizer(HfTokenizerConfig.model_validate({"name": "hf", **fields}))
        tokenizer.load(model_path, [])
        return tokenizer

    return build
