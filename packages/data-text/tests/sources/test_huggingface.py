"""Hugging Face datasets in local folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from rl_core.errors import DataError
from rl_data_text.config import HuggingFaceConfig
from rl_data_text.sources.huggingface import HuggingFaceSource

ROWS = [{"question": "1+1=", "answer": "2"}, {"question": "2+2=", "answer": "4"}]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def source(path: Path, **fields: Any) -> HuggingFaceSource:
    return HuggingFaceSource(
        HuggingFaceConfig.model_validate({"name": "huggingface", "path": str(path), "prompt": "question", **fields})
    )


def test_a_folder_written_by_save_to_disk_is_read(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "set"))
    rows = source(tmp_path / "set").load()
    assert [(row["prompt"], row["answer"]) for row in rows] == [("1+1=", "2"), ("2+2=", "4")]
    assert rows[1]["__where__"] == f"{tmp_path / 'set'}[train]:row 2"


def test_a_saved_dict_is_read_by_its_split(tmp_path: Path) -> None:
    both = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS[:1]), "test": datasets.Dataset.from_list(ROWS[1:])}
    )
    both.save_to_disk(str(tmp_path / "set"))
    assert source(tmp_path / "set", dataset_split="test").load()[0]["prompt"] == "2+2="
    with pytest.raises(DataError) as caught:
        source(tmp_path / "set", dataset_split="dev").load()
    assert str(caught.value) == f"{tmp_path / 'set'} has no split 'dev'\n    set dataset_split to one of train, test"


def test_a_folder_of_data_files_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert [row["prompt"] for row in source(folder, limit=1).load()] == ["1+1="]


def test_the_fingerprint_is_that_of_the_rows(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "same"))
    datasets.Dataset.from_list(ROWS[::-1]).save_to_disk(str(tmp_path / "other"))
    one, same, other = (source(tmp_path / name).fingerprint() for name in ("one", "same", "other"))
    assert one == same
    assert one != other


def test_a_dataset_that_does_not_load_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(DataError) as caught:
        source(folder).load()
    assert str(caught.value).startswith(f"{folder}[train]: cannot be loaded: ")
