"""Hugging Face datasets: a hub id, a local dataset folder, or one written by ``save_to_disk``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from rl_core.errors import DataError, EnvironmentProblem

from rl_data_text.config import HuggingFaceConfig
from rl_data_text.sources.base import Record, TextSource, digest_rows


class HuggingFaceSource(TextSource):
    """Rows of one split of a dataset; rows count from 1.

    Raises:
        EnvironmentProblem: ``datasets`` is not installed.
        DataError: from ``load``: the dataset, its configuration or its split cannot be loaded, or
            a bad row under ``on_bad_row: error``.
    """

    config: HuggingFaceConfig
    fills_with_nulls = True

    def __init__(self, config: HuggingFaceConfig) -> None:
        super().__init__(config)
        self._dataset: Any = None

    def records(self) -> Iterator[Record]:
        for number, value in enumerate(self._load(), start=1):
            yield Record(f"{self.describe()}:row {number}", value)

    def content_digest(self) -> str:
        return digest_rows(self._load())

    def describe(self) -> str:
        config = self.config
        subset = f"/{config.config_name}" if config.config_name else ""
        return f"{config.path}{subset}[{config.dataset_split}]"

    def _load(self) -> Any:
        if self._dataset is None:
            try:
                import datasets
            except ImportError as error:
                raise EnvironmentProblem(
                    "data source 'huggingface' needs the package 'datasets'\n    pip install datasets"
                ) from error
            try:
                self._dataset = self._open(datasets)
            except DataError:
                raise
            # The library raises nearly every built-in exception, depending on where a dataset lives.
            except Exception as error:
                raise DataError(f"{self.describe()}: cannot be loaded: {type(error).__name__}: {error}") from error
        return self._dataset

    def _open(self, datasets: Any) -> Any:
        config = self.config
        if not _written_by_save_to_disk(config.path):
            return datasets.load_dataset(
                config.path, config.config_name, split=config.dataset_split, revision=config.revision
            )
        dataset = datasets.load_from_disk(config.path)
        if not isinstance(dataset, datasets.DatasetDict):
            return dataset
        if config.dataset_split not in dataset:
            raise DataError(
                f"{config.path} has no split {config.dataset_split!r}\n"
                f"    set dataset_split to one of {', '.join(dataset)}"
            )
        return dataset[config.dataset_split]


def _written_by_save_to_disk(path: str) -> bool:
    return any(os.path.isfile(os.path.join(path, name)) for name in ("state.json", "dataset_dict.json"))
