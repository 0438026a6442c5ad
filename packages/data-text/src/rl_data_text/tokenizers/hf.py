"""The tokenizer that belongs to an existing model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rl_core.contracts.data import Row
from rl_core.errors import DataError

from rl_data_text.config import HfTokenizerConfig
from rl_data_text.pretrained import load_pretrained
from rl_data_text.tokenizers.base import TextTokenizer


class HfTokenizer(TextTokenizer):
    """Loads the tokenizer of ``tokenizer.path``, else of the model; rows are not looked at."""

    config: HfTokenizerConfig

    def obtain(self, model_path: str | None, rows: Sequence[Row], *, trust_remote_code: bool) -> Any:
        path = self.config.path or model_path
        if path is None:
            raise DataError(
                "tokenizer 'hf' has nothing to load: the model starts from scratch\n"
                "    set tokenizer.path to a folder with a tokenizer, or build one from the data with "
                "tokenizer: {name: bpe} or {name: characters}"
            )
        return load_pretrained(path, trust_remote_code=trust_remote_code)
