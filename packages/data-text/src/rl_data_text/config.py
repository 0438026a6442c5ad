"""Config models of the data sources and tokenizers."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from rl_core.config.paths import ConfigPath, FunctionRef, HubPath, absolute
from rl_core.config.problems import Problem
from rl_core.config.sections import ComponentConfig
from rl_core.errors import DataError, EnvironmentProblem


def _column_spec(value: str) -> str:
    if not value:
        raise ValueError("the column name is empty")
    for _, name, format_spec, conversion in string.Formatter().parse(value):
        if name is not None and (not name or format_spec or conversion):
            raise ValueError(f"in the template {value!r} a placeholder must be just a column name, like {{question}}")
    return value


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return value


def _template_source(value: Any) -> Any:
    if isinstance(value, str) and value and "{" not in value and "\n" not in value:
        return absolute(value)
    return value


ColumnSpec = Annotated[str, AfterValidator(_column_spec)]
"""A column name (``question``, nested: ``turns.0.text``) or a template (``"Q: {question}\\nA:"``)."""

Pattern = Annotated[str, AfterValidator(_pattern)]

ChatTemplate = Annotated[str, BeforeValidator(_template_source)]
"""Jinja text (anything with a ``{``), or the path of a file that holds it."""


class TextSourceConfig(ComponentConfig):
    """Options of all text sources."""

    location_fields: ClassVar[tuple[str, ...]] = ("path",)

    prompt: ColumnSpec | None = Field(
        None, description="Column or {column} template of the prompt: text, or a list of chat messages."
    )
    completion: ColumnSpec | None = Field(None, description="Column or template of what follows the prompt (SFT).")
    answer: ColumnSpec | None = Field(None, description="Column or template of the answer that rewards compare with.")
    messages: ColumnSpec | None = Field(None, description="Column of a whole conversation (list of chat messages).")
    chosen: ColumnSpec | None = Field(None, description="Column or template of the preferred completion.")
    rejected: ColumnSpec | None = Field(None, description="Column or template of the completion it is preferred to.")
    label: ColumnSpec | None = Field(None, description="Column that says whether a completion is desirable (KTO).")
    tools: ColumnSpec | None = Field(
        None, description="Column of the tools that a conversation has: a list of JSON schemas, or its JSON text."
    )
    chat_template_kwargs: ColumnSpec | None = Field(
        None, description="Column of variables for the chat template, such as enable_thinking: an object or JSON text."
    )
    format: Literal["columns", "hh", "hh_messages"] = Field(
        "columns",
        description="Form of preference pairs: columns of their own, or two whole HH-RLHF transcripts that are split "
        "into prompt, chosen and rejected, with the prompt as text (hh) or as chat messages (hh_messages).",
    )
    system: str | None = Field(
        None, description="System message put in front of rows without one; turns a text prompt into messages."
    )
    answer_pattern: Pattern | None = Field(
        None, description="Regular expression that finds the answer in the answer column; its first group is taken."
    )
    limit: int | None = Field(None, ge=1, description="Use at most this many rows.")
    skip_first: int = Field(0, ge=0, description="Leave out this many rows at the start.")
    holdout: int = Field(
        0, ge=0, description="Rows held out, chosen by a fixed permutation; give data and eval_data the same number."
    )
    split: Literal["train", "holdout"] = Field("train", description="Which side of the hold-out to read.")
    on_bad_row: Literal["error", "skip"] = Field("error", description="Stop at a bad row, or skip and count it.")

    @model_validator(mode="after")
    def _transcripts_make_their_prompt(self) -> TextSourceConfig:
        if self.format != "columns":
            for key in ("prompt", "messages"):
                if getattr(self, key) is not None:
                    raise ValueError(f"format: {self.format} makes the prompt from the transcripts; remove {key}")
        if self.format == "hh" and self.system is not None:
            raise ValueError("a system message needs chat messages; set format: hh_messages")
        return self

    @model_validator(mode="after")
    def _split_has_a_size(self) -> TextSourceConfig:
        if self.split == "holdout" and not self.holdout:
            raise ValueError("split: holdout needs holdout: <number of rows>")
        return self


class _FilesConfig(TextSourceConfig):
    path: ConfigPath | tuple[ConfigPath, ...] = Field(description="A file, a glob (data/*.jsonl), or a list of them.")

    @property
    def paths(self) -> tuple[str, ...]:
        """``path`` as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path


class JsonlConfig(_FilesConfig):
    """JSON-lines files; ``.gz`` files are unzipped."""


class ParquetConfig(_FilesConfig):
    """Parquet files."""


class HuggingFaceConfig(TextSourceConfig):
    """A Hugging Face dataset."""

    location_fields: ClassVar[tuple[str, ...]] = ("path", "config_name", "dataset_split", "revision")

    path: HubPath = Field(description="Hub id, a local dataset folder, or a folder written by save_to_disk.")
    config_name: str | None = Field(None, description="Configuration of the dataset, e.g. main.")
    dataset_split: str = Field("train", description="Split of the dataset, e.g. train or test[:100].")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")


class PythonConfig(TextSourceConfig):
    """Rows from a function."""

    location_fields: ClassVar[tuple[str, ...]] = ("function", "arguments")

    function: FunctionRef = Field(description="module:function or file.py:function that returns (finitely many) dicts.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for the function.")


class TextTokenizerConfig(ComponentConfig):
    """Options of all tokenizers of this package."""

    chat_template: ChatTemplate | None = Field(
        None, description="Jinja chat template, or the path of a file with one; default: the tokenizer's own."
    )
    chat_template_name: str | None = Field(
        None,
        description="Which of the tokenizer's several chat templates to use; default: tool_use where a row has tools, "
        "else default.",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="Variables for the chat template, such as enable_thinking: false; those of a row's column "
        "chat_template_kwargs come on top.",
    )


class HfTokenizerConfig(TextTokenizerConfig):
    """The tokenizer of an existing model."""

    path: HubPath | None = Field(None, description="Folder or hub id of the tokenizer; default: model.path.")

    def problems(self, stage: Any) -> Iterator[Problem]:
        """Damaged files of a tokenizer in a local folder."""
        from rl_data_text.pretrained import check_folder

        path = self.path or stage.model.path
        if path is None or not os.path.isdir(path):
            return
        try:
            check_folder(path)
        except (EnvironmentProblem, DataError) as error:
            message, _, fix = str(error).partition("\n")
            yield Problem("path" if self.path else "", message, fix.strip())


class CharactersConfig(TextTokenizerConfig):
    """A tokenizer of single characters."""

    alphabet: str = Field("", description="Characters to know besides those of the rows.")
    vocab_size: int | None = Field(
        None, ge=4, description="Fill the vocabulary up to this size with unused tokens (a round size is faster)."
    )
    bos: bool = Field(False, description="Start every sequence with a <bos> token.")


class BpeConfig(TextTokenizerConfig):
    """A byte-level BPE tokenizer."""

    vocab_size: int = Field(4096, ge=258, description="Largest vocabulary: 2 special tokens, 256 bytes, and merges.")
