"""Checks of a reward-model folder that read only its small files and import nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_core.errors import EnvironmentProblem
from rl_huggingface.foreign import foreign
from rl_huggingface.model_folder import check_model_folder, read_config

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_HEAD = "ForSequenceClassification"
_TRAIN_ONE = "give the export of a reward-model stage, or another sequence-classification model with one label"


@dataclass(frozen=True)
class Finding:
    """A fault of a folder, and what to do; ``str`` gives both lines."""

    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.message}\n    {self.fix}"


def folder_problem(path: str) -> Finding | None:
    """Why the local folder ``path`` cannot be a reward model; None if nothing speaks against it."""
    if not os.path.isdir(path):
        return Finding(f"there is no folder {path}", _TRAIN_ONE)
    if "config.json" not in os.listdir(path):
        shown = _shown(path)
        return Finding(f"the folder {path} is no model: it has no config.json (it holds {shown})", _TRAIN_ONE)
    try:
        with foreign(path, what="the reward model"):
            check_model_folder(path)
    except EnvironmentProblem as error:
        message, _, fix = str(error).partition("\n")
        return Finding(message, fix.strip() or "copy the model again")
    return model_problem(path)


def model_problem(path: str) -> Finding | None:
    """Why the model in a folder is no reward model; None for a damaged folder, which is for others to report."""
    try:
        with foreign(path):
            found = config_problem(read_config(Path(path)), path)
    except EnvironmentProblem:
        return None
    names = os.listdir(path)
    if found is None and not any(name in _TOKENIZER_FILES or name.endswith(".tiktoken") for name in names):
        return Finding(
            f"the folder {path} has no tokenizer (no tokenizer.json; it holds {_shown(path)})",
            "copy the tokenizer files of the model it was trained from there",
        )
    return found


def _shown(path: str) -> str:
    names = sorted(os.listdir(path))
    return (", ".join(names[:6]) + (", …" if len(names) > 6 else "")) or "nothing"


def config_problem(fields: Mapping[str, Any], path: str) -> Finding | None:
    """Why a model with this ``config.json`` gives no reward: another head, or not one label."""
    architectures = [str(name) for name in fields.get("architectures") or ()]
    own_code = "AutoModelForSequenceClassification" in (fields.get("auto_map") or {})
    if not own_code and not any(name.endswith(_HEAD) for name in architectures):
        what = " / ".join(architectures) or "a model without a named architecture"
        return Finding(f"{path} is {what}, not a sequence-classification model: it has no score to give", _TRAIN_ONE)
    labels = number_of_labels(fields)
    if labels != 1:
        return Finding(f"{path} has {labels} labels; a reward model has one", _TRAIN_ONE)
    return None


def number_of_labels(fields: Mapping[str, Any]) -> int:
    """Labels of a ``config.json``; without any word on it transformers assumes two."""
    names = fields.get("id2label")
    return len(names) if names is not None else int(fields.get("num_labels") or 2)


def learned_positions(fields: Mapping[str, Any]) -> int | None:
    """Tokens that a model with learned position embeddings can read; None for rotary and relative positions."""
    nested = fields.get("text_config")
    text = nested if isinstance(nested, Mapping) else fields
    rotary = any(key.startswith(("rope", "rotary", "alibi", "relative")) and text[key] for key in text)
    limit = text.get("max_position_embeddings") or text.get("n_positions")
    return None if rotary or not limit else int(limit)
