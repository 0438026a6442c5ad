"""A small model of a large one's architecture, to try what an architecture does while the large one has no storage."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from rl_core.contracts.model import Head, ModelSpec
from rl_torch.architectures import attention_of
from rl_torch.models import auto_class, build_config
from transformers import PretrainedConfig, PreTrainedModel

VOCABULARY = 64

logger = logging.getLogger(__name__)


def small_sample(spec: ModelSpec, head: Head) -> PreTrainedModel | None:
    """Two layers, or one of each kind, of ``spec``'s model with random weights and a small vocabulary.

    In float32, whatever the file's dtype, because 16-bit rounding hides the differences. All ranks have the
    same weights and so come to the same result.

    Returns:
        None for a model from scratch, or where the architecture cannot be made smaller in this way.
    """
    if spec.path is None or spec.trust_remote_code:
        return None
    config = build_config(spec)
    auto = auto_class(config, head)
    for special in (None, 0):  # some need a token for padding, or an end
        try:
            shape = smaller(config, special)
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)
                made = auto.from_config(
                    type(config).from_dict(shape), dtype=torch.float32, attn_implementation=attention_of(config, auto)
                )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - a family's own rules for its config
            logger.info("%s cannot be made smaller: %s", type(config).__name__, error)
            continue
        return made.eval()
    return None


def smaller(config: PretrainedConfig, special: int | None) -> dict[str, Any]:
    """The fields of ``config`` with fewer layers and tokens; of its text model, if it is one for images and text too.

    Args:
        special: the token that begins, ends and pads. A model for images and text too has 0 always: it puts the token
            for padding in the place of images.

    Raises:
        AttributeError: the config does not say how many layers there are.
    """
    text = config.get_text_config(decoder=True)
    fields = _with_layers(text.to_dict(), _one_of_each_kind(text), of=text.num_hidden_layers)
    fields |= {"num_hidden_layers": len(_one_of_each_kind(text)), "vocab_size": VOCABULARY}
    fields |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), special if text is config else 0)
    if text is config:
        return fields
    whole = config.to_dict()
    name = next(name for name in config.sub_configs if getattr(config, name, None) is text)
    return {**whole, name: fields}


def _one_of_each_kind(config: PretrainedConfig) -> list[int]:
    """Numbers of the first layers of each kind, at least two."""
    kinds = getattr(config, "layer_types", None) or ()
    first = {kind: index for index, kind in reversed(list(enumerate(kinds)))}
    numbers = [n for n in range(config.num_hidden_layers) if n in first.values()]
    others = [n for n in range(config.num_hidden_layers) if n not in numbers]
    return sorted(numbers + others[: max(0, 2 - len(numbers))])


def _with_layers(fields: Mapping[str, Any], numbers: list[int], *, of: int) -> dict[str, Any]:
    """``fields`` with the entries of these layers where there is an entry for each of ``of`` layers."""
    kept = {}
    for name, value in fields.items():
        if isinstance(value, list | tuple) and len(value) == of and of > len(numbers):
            value = [value[n] for n in numbers]
        kept[name] = value
    if own := fields.get("per_layer_config"):
        kept["per_layer_config"] = {new: own[key] for new, n in enumerate(numbers) for key in (n, str(n)) if key in own}
    if fields.get("num_kv_shared_layers"):
        kept["num_kv_shared_layers"] = 0  # it counts from the last layer; and does not change which tokens are seen
    return kept
