"""Components of this package, as references; imported at discovery, so it stays light."""

from __future__ import annotations

from rl_core.component import Component
from rl_core.hookspecs import hookimpl


@hookimpl
def register_data_sources() -> list[Component]:
    """JSON lines, Parquet, Hugging Face datasets, and rows from a Python function."""
    return [
        Component(
            kind="data_source",
            name="jsonl",
            factory="rl_data_text.sources.jsonl:JsonlSource",
            config="rl_data_text.config:JsonlConfig",
            summary="Rows from JSON-lines files (.jsonl, .jsonl.gz, .json.gz; several files or a glob).",
        ),
        Component(
            kind="data_source",
            name="parquet",
            factory="rl_data_text.sources.parquet:ParquetSource",
            config="rl_data_text.config:ParquetConfig",
            summary="Rows from Parquet files (several files or a glob).",
            imports=("pyarrow",),
        ),
        Component(
            kind="data_source",
            name="huggingface",
            factory="rl_data_text.sources.huggingface:HuggingFaceSource",
            config="rl_data_text.config:HuggingFaceConfig",
            summary="Rows from a Hugging Face dataset: a hub id or a local folder.",
            imports=("datasets",),
        ),
        Component(
            kind="data_source",
            name="python",
            factory="rl_data_text.sources.python:PythonSource",
            config="rl_data_text.config:PythonConfig",
            summary="Rows from your own Python function.",
        ),
    ]


@hookimpl
def register_tokenizers() -> list[Component]:
    """A model's own tokenizer, and two that are built from the data for models from scratch."""
    return [
        Component(
            kind="tokenizer",
            name="hf",
            factory="rl_data_text.tokenizers.hf:HfTokenizer",
            config="rl_data_text.config:HfTokenizerConfig",
            summary="The tokenizer of a Hugging Face model folder or hub id.",
            imports=("transformers",),
        ),
        Component(
            kind="tokenizer",
            name="characters",
            factory="rl_data_text.tokenizers.characters:CharacterTokenizer",
            config="rl_data_text.config:CharactersConfig",
            summary="One token per character of the data, for small models from scratch.",
            imports=("transformers", "tokenizers"),
        ),
        Component(
            kind="tokenizer",
            name="bpe",
            factory="rl_data_text.tokenizers.bpe:BpeTokenizer",
            config="rl_data_text.config:BpeConfig",
            summary="Byte-level BPE trained on the data, for models from scratch.",
            imports=("transformers", "tokenizers"),
        ),
    ]
