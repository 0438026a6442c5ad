"""Loading an existing tokenizer, without the network where it is in a local folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rl_core.errors import DataError, EnvironmentProblem
from rl_huggingface.foreign import MAX_TOKENIZER_BYTES, foreign, read_json_object
from rl_huggingface.model_folder import check_files

_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_OBJECTS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
_PROBE = "It is 7.\n\nAnd now?"


def load_pretrained(path: str, *, trust_remote_code: bool) -> Any:
    """The Hugging Face tokenizer of a folder or hub id.

    Raises:
        DataError: the folder does not exist or has no tokenizer.
        EnvironmentProblem: it cannot be loaded.
    """
    local = os.path.isdir(path)
    if local:
        check_folder(path)
    elif os.path.isabs(path):
        raise DataError(f"the tokenizer folder {path} does not exist\n    check model.path (or tokenizer.path)")
    advice = "check model.path (or tokenizer.path); a hub id needs the network or a cached copy"
    with foreign(path, what="the tokenizer of", fix=advice):
        return _load(path, local=local, trust_remote_code=trust_remote_code)


def _load(path: str, *, local: bool, trust_remote_code: bool) -> Any:
    from transformers import PreTrainedTokenizerFast

    # The class that a built tokenizer is saved under needs no model config to be found, and
    # AutoTokenizer imports torch.
    if local and _saved_class(path) == PreTrainedTokenizerFast.__name__:
        return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(path, local_files_only=local, trust_remote_code=trust_remote_code)
    if not getattr(loaded, "is_fast", False) or _keeps_text(loaded):
        return loaded
    # AutoTokenizer rebuilds some tokenizers as the kind that the class in their config once was: those of
    # DeepSeek-R1's distillations, byte-level ones of class LlamaTokenizerFast, then lose every space.
    as_published = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=local)
    return as_published if _keeps_text(as_published) else loaded


def _keeps_text(tokenizer: Any) -> bool:
    """Whether a simple text is the same after tokenizing and decoding; not so for those that fold case or spaces."""
    return tokenizer.decode(tokenizer.encode(_PROBE, add_special_tokens=False)).strip() == _PROBE


def _saved_class(path: str) -> str | None:
    config = os.path.join(path, "tokenizer_config.json")
    if not os.path.isfile(config) or not os.path.isfile(os.path.join(path, "tokenizer.json")):
        return None
    fields = read_json_object(config)
    return None if "auto_map" in fields else fields.get("tokenizer_class")


def check_folder(path: str) -> None:
    """Look at the files of a local folder that loading reads, as far as they are JSON.

    Raises:
        DataError: the folder has no tokenizer.
        EnvironmentProblem: a file is damaged, or is no file.
    """
    names = sorted(os.listdir(path))
    if any(n in _FILES or n.endswith(".tiktoken") or n == "tokenizer_config.json" for n in names):
        with foreign(path, what="the tokenizer of"):
            check_files(Path(path))
            for name in _OBJECTS:
                if name not in names:
                    continue
                file = os.path.join(path, name)
                content = read_json_object(file, max_bytes=MAX_TOKENIZER_BYTES)
                model = content.get("model")
                if name == "tokenizer.json" and not (isinstance(model, dict) and model.get("vocab")):
                    raise EnvironmentProblem(f"{file} has no vocabulary")
        return
    shown = ", ".join(names[:6]) + (", …" if len(names) > 6 else "") if names else "nothing"
    raise DataError(
        f"the folder {path} has no tokenizer (no tokenizer.json; it holds {shown})\n"
        "    copy the model's tokenizer files there, or set tokenizer.path to a folder that has them"
    )
