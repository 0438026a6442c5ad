"""The sizes of a model before it is loaded: from ``model.init``, or from a ``config.json`` on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_core.config.sections import InitConfig, ModelConfig
from rl_core.contracts.rating import ModelShape
from rl_core.errors import EnvironmentProblem

from rl_huggingface.foreign import MAX_TOKENIZER_BYTES, read_json, read_json_object
from rl_huggingface.model_folder import check_config

ASSUMED_VOCABULARY = 32_768
"""Entries of a vocabulary that is only known when the data have been read."""

_LEARNED_POSITIONS = {"gpt2", "opt", "gpt_neo", "gpt_bigcode"}
_TWO_MATRICES = _LEARNED_POSITIONS | {"gpt_neox", "gptj", "bloom", "falcon", "phi", "mpt", "starcoder2"}
_ATTENTION_BIAS = _TWO_MATRICES - {"gpt_neo", "gptj", "falcon", "mpt"} | {"qwen2", "qwen2_moe"}
_QK_NORM = {"qwen3", "qwen3_moe", "gemma3", "gemma3_text", "olmo2", "olmo3"}
# What a config.json without the key means; transformers writes it only where it differs from the class's default.
_TIED = {"gemma", "gemma2", "gemma3", "gemma3_text", "gpt2", "opt", "gpt_neo", "gpt_bigcode", "bloom", "falcon", "mpt"}

_KEYS = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "vocab_size": ("vocab_size",),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "ffn": ("intermediate_size", "n_inner", "ffn_dim"),
    "positions": ("max_position_embeddings", "n_positions"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts"),
}
"""Field of :class:`ModelShape` → the names it has in a config.json."""


@dataclass(frozen=True)
class FoundShape:
    """A model's shape, or why there is none; ``note`` says what had to be assumed."""

    shape: ModelShape | None
    unknown: str = ""
    note: str = ""


def shape_of_model(
    model: ModelConfig, tokenizer: object | None = None, *, exports: Mapping[str, FoundShape] | None = None
) -> FoundShape:
    """The shape of the section ``model``.

    Args:
        tokenizer: the validated config of the section ``tokenizer``; sizes the vocabulary of a model from scratch.
        exports: folders that earlier stages will write → the shape of what they hold.
    """
    if model.init is not None:
        return _shape_of_init(model.init, tokenizer, max_length=model.max_length)
    return shape_at(model.path or "", exports=exports)


def shape_at(path: str, *, exports: Mapping[str, FoundShape] | None = None) -> FoundShape:
    """The shape of a model folder, of an earlier stage's export, or of a hub id that is in the local cache."""
    config = _config_file(path)
    if config is None:
        if exports and path in exports:
            return exports[path]
        where = "has no config.json" if os.path.isabs(path) else "is not in the local Hugging Face cache"
        return FoundShape(None, unknown=f"{path} {where}")
    try:
        content = read_json_object(config)
        check_config(content, where=config)
        return FoundShape(shape_of_config(content))
    except (EnvironmentProblem, ValueError, TypeError, ArithmeticError) as error:
        reason = str(error).partition("\n")[0].removeprefix(str(config)).lstrip(": ")
        return FoundShape(None, unknown=f"{config} does not describe a decoder: {reason}")


def shape_of_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a Hugging Face config (as in ``config.json``) describes.

    Raises:
        ValueError: it lacks a size, or one is no number.
    """
    text = config.get("text_config")
    if isinstance(text, Mapping):  # an image-text model: its decoder
        config = {**config, **text}
    kind = str(config.get("model_type", ""))
    found = {name: _first(config, keys) for name, keys in _KEYS.items()}
    for name in ("hidden_size", "layers", "heads", "vocab_size"):
        if found[name] is None:
            raise ValueError(f"{_KEYS[name][0]!r} is missing")
    hidden, heads = int(found["hidden_size"]), int(found["heads"])
    dense, experts = found["ffn"] or 4 * hidden, found["experts"] or 0
    if config.get("multi_query"):
        found["kv_heads"] = 1
    return ModelShape(
        architecture=kind,
        hidden_size=hidden,
        layers=int(found["layers"]),
        heads=heads,
        kv_heads=int(found["kv_heads"] or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        ffn=int((experts and config.get("moe_intermediate_size")) or dense),
        vocab_size=int(found["vocab_size"]),
        tie_embeddings=bool(config.get("tie_word_embeddings", kind in _TIED)),
        gated=kind not in _TWO_MATRICES,
        attention_bias=bool(config.get("attention_bias", kind in _ATTENTION_BIAS)),
        linear_bias=kind in _TWO_MATRICES,
        qk_norm=kind in _QK_NORM,
        positions=int(found["positions"] or 0) if kind in _LEARNED_POSITIONS else 0,
        experts=int(experts),
        experts_per_token=int(config.get("num_experts_per_tok") or 0),
        shared_ffn=int(config.get("shared_expert_intermediate_size") or 0),
    )


def _shape_of_init(init: InitConfig, tokenizer: object | None, *, max_length: int) -> FoundShape:
    vocabulary = init.extra.get("vocab_size") or _vocabulary(tokenizer)
    fields = {
        "model_type": init.architecture.lower(),
        "hidden_size": init.hidden_size,
        "num_hidden_layers": init.layers,
        "num_attention_heads": init.heads,
        "num_key_value_heads": init.kv_heads,
        "intermediate_size": init.ffn,
        "tie_word_embeddings": init.tie_embeddings,
        "max_position_embeddings": max_length,
        "vocab_size": vocabulary or ASSUMED_VOCABULARY,
    }
    try:
        shape = shape_of_config(fields | init.extra)
    except (ValueError, TypeError) as error:
        return FoundShape(None, unknown=f"model.init.extra does not describe a decoder: {error}")
    if vocabulary:
        return FoundShape(shape)
    assumed = f"a vocabulary of {ASSUMED_VOCABULARY:,} is assumed: the tokenizer's is not known yet"
    return FoundShape(shape, note=assumed)


def _vocabulary(tokenizer: object | None) -> int | None:
    """The vocabulary size from the tokenizer's config or folder."""
    size = getattr(tokenizer, "vocab_size", None)
    if isinstance(size, int):
        return size
    path = getattr(tokenizer, "path", None)
    if not isinstance(path, str):
        return None
    if (found := shape_at(path)).shape is not None:
        return found.shape.vocab_size
    return _size_of_tokenizer(Path(path) / "tokenizer.json")


def _size_of_tokenizer(file: Path) -> int | None:
    """One more than the highest id in a tokenizer.json."""
    try:
        content = read_json(file, max_bytes=MAX_TOKENIZER_BYTES)
        vocabulary = content["model"]["vocab"]
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
        return 1 + max([*ids, *(token["id"] for token in content.get("added_tokens", ()))])
    except (EnvironmentProblem, ValueError, TypeError, KeyError, AttributeError):
        return None


def _config_file(path: str) -> Path | None:
    if os.path.isabs(path):
        file = Path(path) / "config.json"
        return file if file.is_file() else None
    return _cached_config(path)


def _cached_config(hub_id: str) -> Path | None:
    """``config.json`` of a hub id's main revision in the Hugging Face cache."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))
    folder = cache / f"models--{hub_id.replace('/', '--')}"
    try:
        revision = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    file = folder / "snapshots" / revision / "config.json"
    return file if file.is_file() else None


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)
