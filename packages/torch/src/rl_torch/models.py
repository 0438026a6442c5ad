"""Hugging Face models from a :class:`~rl_core.contracts.model.ModelSpec`, seeded without touching global randomness."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from rl_core.contracts.model import Head, ModelSpec
from rl_core.errors import EnvironmentProblem
from rl_huggingface.foreign import foreign
from rl_huggingface.model_folder import check_model_folder
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from rl_torch.architectures import attention_of
from rl_torch.determinism import switch_randomness_off
from rl_torch.pretrained import empty_like, forget_quantization, load_pretrained
from rl_torch.rope import fix_frequencies


def build_config(spec: ModelSpec) -> PretrainedConfig:
    """The transformers config of ``spec``.

    It keeps what the folder says about caches and dropout, because it is also what an export writes: pass
    ``use_cache=False`` to a training forward, and call :func:`settle` for a model that is built from it.

    Raises:
        EnvironmentProblem: the folder or hub id cannot be read, or transformers does not know the
            architecture.
    """
    return _read_config(spec) if spec.path is not None else _config_from_shape(spec)


def auto_class(config: PretrainedConfig, head: Head) -> Any:
    """The ``AutoModelFor…`` that builds the model of ``config`` with this head; a scalar one's config has one label."""
    if head == "lm":
        return AutoModelForCausalLM
    config.num_labels = 1
    return AutoModelForSequenceClassification


def skeleton(config: PretrainedConfig, head: Head) -> PreTrainedModel:
    """The model without memory for its weights: names, shapes, and what an export writes next to them."""
    return empty_like(auto_class(config, head), config)


def settle(model: PreTrainedModel, spec: ModelSpec) -> PreTrainedModel:
    """``model``, in evaluation mode, as it stays: nothing in it is random, or depends on the rest of a batch."""
    switch_randomness_off(model)
    fix_frequencies(model, spec.max_length)
    return model


def build_model(
    spec: ModelSpec,
    *,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    random_init: bool = True,
    head: Head = "lm",
) -> PreTrainedModel:
    """The model of ``spec``, as :func:`settle` leaves it.

    Args:
        dtype: of all floating-point parameters.
        device: where the parameters end up.
        random_init: for ``spec.init``: draw the weights from ``spec.seed`` (the same on every rank and
            device). False leaves them unset, for a generator whose weights arrive later.
        head: ``scalar`` gives a sequence-classification model with one label, whose ``score`` layer
            is zero unless ``spec.path`` has one: a new reward model starts at reward 0. Its config names the
            tokenizer's padding token (or else the end token), without which transformers refuses batches.

    Raises:
        EnvironmentProblem: see :func:`build_config`; or weights are missing, or transformers has no
            such model with this head.
    """
    config = build_config(spec)
    auto = auto_class(config, head)
    model: Any  # transformers wraps `to` without its types
    try:
        if spec.path is not None:
            model, new = _load(auto, spec, config, dtype)
        else:
            model, new = _initialise(auto, spec, config, dtype, random_init), {"score.weight"}
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:  # a family's code and another config
        raise EnvironmentProblem(f"cannot build a {config.model_type!r} model: {error}") from error
    if head == "scalar":
        _finish_scalar(model, spec, is_new="score.weight" in new)
    return settle(model.to(device), spec)


def _read_config(spec: ModelSpec) -> PretrainedConfig:
    path = str(spec.path)
    advice = "model.path must be a Hugging Face folder with config.json, or a hub id this machine can download"
    with foreign(path, fix=advice):
        if os.path.isdir(path):
            check_model_folder(path)
        config = AutoConfig.from_pretrained(path, trust_remote_code=spec.trust_remote_code)
        forget_quantization(config)
    return config


def _config_from_shape(spec: ModelSpec) -> PretrainedConfig:
    init = dict(spec.init or {})
    extra = dict(init.get("extra") or {})
    name = init["architecture"]
    if name not in CONFIG_MAPPING:
        near = difflib.get_close_matches(name, list(CONFIG_MAPPING.keys()), n=3)
        raise EnvironmentProblem(
            f"model.init.architecture: transformers {transformers.__version__} knows no model type {name!r}"
            f"\n    {'did you mean ' + ' or '.join(near) + '?' if near else 'use for example qwen2, qwen3 or llama'}"
        )
    fields: dict[str, Any] = {
        "vocab_size": spec.vocab_size,
        "hidden_size": init["hidden_size"],
        "num_hidden_layers": init["layers"],
        "num_attention_heads": init["heads"],
        "num_key_value_heads": init.get("kv_heads") or init["heads"],
        "intermediate_size": init.get("ffn") or 4 * init["hidden_size"],
        "tie_word_embeddings": init.get("tie_embeddings", True),
        "max_position_embeddings": spec.max_length,
        # The classes default to ids of the published models, which a small vocabulary lacks.
        **{key: spec.special_tokens.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        **extra,
    }
    config = AutoConfig.for_model(name, **fields)
    head_dim = init["hidden_size"] // init["heads"]
    if "head_dim" not in extra and _head_dim(config) not in (None, head_dim):
        # Some architectures (qwen3) default to heads of 128, whatever the width.
        config.head_dim = head_dim
    return config


def _head_dim(config: PretrainedConfig) -> int | None:
    """None where there is no field for it, or it differs between layers (Gemma 4)."""
    try:
        return getattr(config, "head_dim", None)
    except Exception:  # noqa: BLE001 - transformers has one of its own for this
        return None


def _load(auto: Any, spec: ModelSpec, config: PretrainedConfig, dtype: torch.dtype) -> tuple[PreTrainedModel, set[str]]:
    """The model and the names of parameters the folder lacks (a new scalar head)."""
    with _seeded(spec.seed):
        return load_pretrained(auto, str(spec.path), config, dtype=dtype, trust_remote_code=spec.trust_remote_code)


def _finish_scalar(model: PreTrainedModel, spec: ModelSpec, *, is_new: bool) -> None:
    """Zero a new head and name the padding token.

    Raises:
        EnvironmentProblem: the architecture's head is not one linear layer ``score``.
    """
    head = getattr(model, "score", None)
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        raise EnvironmentProblem(
            f"{type(model).__name__} has no linear layer 'score' without bias, which reward and value models need; "
            "choose another architecture"
        )
    if is_new:
        torch.nn.init.zeros_(head.weight)
    name_padding_token(model.config, spec, is_new=is_new)


def name_padding_token(config: PretrainedConfig, spec: ModelSpec, *, is_new: bool) -> None:
    """Name the tokenizer's padding token in a scalar model's config, without which transformers refuses batches.

    Not before the model is built: an embedding's row for padding would get no gradient.

    Args:
        is_new: the head is; else a token that the config names stays.
    """
    ids = [spec.special_tokens.get(name) for name in ("pad_token_id", "eos_token_id")]
    padding = next((i for i in ids if i is not None), None)
    if padding is not None and (is_new or config.pad_token_id is None):
        config.pad_token_id = padding


def _initialise(
    auto: Any, spec: ModelSpec, config: PretrainedConfig, dtype: torch.dtype, random_init: bool
) -> PreTrainedModel:
    if not random_init:
        with no_init_weights():
            model = auto.from_config(config, dtype=dtype, attn_implementation=attention_of(config, auto))
        model.tie_weights()
        return model
    with _seeded(spec.seed):
        # Drawn in float32, so that the bf16 model is the rounded fp32 one.
        model = auto.from_config(config, dtype=torch.float32, attn_implementation=attention_of(config, auto))
    for parameter in model.parameters():
        # Not model.to(dtype): that would round the rotary frequencies too.
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch inside the block and put the global CPU generator back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
