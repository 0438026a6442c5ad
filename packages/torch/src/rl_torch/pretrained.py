"""``from_pretrained``, with everything compared first: what a folder holds is what the model computes with."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rl_core.errors import EnvironmentProblem
from rl_huggingface.foreign import foreign
from rl_huggingface.model_folder import PICKLES, StoredTensor, check_files, files_of_index
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from rl_torch.architectures import attention_of
from rl_torch.checkpoint_files import CheckpointFiles, open_checkpoint
from rl_torch.weight_plan import NEW_HEAD, WeightPlan, check_shapes, check_types, check_unread

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


def forget_quantization(config: PretrainedConfig) -> None:
    """Weights are dequantised when they are read, so neither a model nor an export has what ``config`` says of it."""
    for part in (config, config.get_text_config()):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config


def empty_like(auto: Any, config: PretrainedConfig) -> PreTrainedModel:
    """The model of ``config`` without storage: parameters and buffers on the meta device."""
    with torch.device("meta"):
        model = auto.from_config(config, dtype=torch.float32, attn_implementation=attention_of(config, auto))
    model.tie_weights()
    return model


def weight_plan(path: str, empty: Callable[[], PreTrainedModel]) -> WeightPlan | None:
    """Where each weight of a model is in the safetensors of a folder or hub id; None where only transformers can tell.

    Args:
        empty: makes the model without storage.

    Raises:
        EnvironmentProblem: the files are damaged, or do not hold this model's weights.
    """
    with foreign(path):
        files = open_checkpoint(path)
        return None if files is None else WeightPlan.of(empty(), files)


def load_pretrained(
    auto: Any,
    path: str,
    config: PretrainedConfig,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    what: str = "the model",
) -> tuple[PreTrainedModel, set[str]]:
    """The model of a folder or hub id in evaluation mode, and the names its files lack (of a new scalar head).

    Args:
        auto: an ``AutoModelFor…`` class.
        config: describes the model; without a ``quantization_config``.
        dtype: of the parameters; quantised weights are dequantised in float32 and then rounded.
        what: names the model in messages.

    Raises:
        EnvironmentProblem: the files are damaged, or do not hold this model's weights.
    """
    with foreign(path, what=what):
        files = open_checkpoint(path)
        if (trust_remote_code or not _is_compared(auto, path, config, files)) and files is not None:
            check_types({name: name for name in files.names if name.endswith(".weight")}, {}, files)
        options: dict[str, Any] = {
            "config": config,
            "dtype": dtype,
            "attn_implementation": attention_of(config, auto),
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,  # which are refused here, with both shapes
        }
        if files is not None and files.is_quantized:
            model, info = _dequantised(auto, path, files, options)
        else:
            model, info = auto.from_pretrained(path, trust_remote_code=trust_remote_code, **options)
        mismatched = {name: (found, model.state_dict()[name]) for name, found, *_ in info["mismatched_keys"]}
        check_shapes({n: own for n, (_, own) in mismatched.items()}, {n: found for n, (found, _) in mismatched.items()})
        if info.get("conversion_errors"):
            raise EnvironmentProblem(f"transformers cannot convert {', '.join(sorted(info['conversion_errors'])[:3])}")
        if not trust_remote_code:
            check_unread(model, info["unexpected_keys"])
        new = set(info["missing_keys"])
        missing = sorted(new - {NEW_HEAD})
        if missing:
            # transformers would continue with random values.
            raise EnvironmentProblem(
                f"the folder lacks the weights {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}\n"
                "    copy the model again, or give one with this head"
            )
    return model, new


def _dequantised(
    auto: Any, path: str, files: CheckpointFiles, options: Mapping[str, Any]
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """Load the float weights of the files as ``from_pretrained`` does."""
    kind: Any = type(empty_like(auto, options["config"]))
    model, info = kind.from_pretrained(None, state_dict={name: files.read(name) for name in files.names}, **options)
    model.config.name_or_path = path
    if model.can_generate() and cached_file(
        path, "generation_config.json", _raise_exceptions_for_missing_entries=False
    ):
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model, info


def _is_compared(auto: Any, path: str, config: PretrainedConfig, files: CheckpointFiles | None) -> bool:
    """Refuse a folder that does not fit, before transformers allocates anything; False where that cannot be said."""
    if files is None and Path(path).is_dir():
        stored = pickled_tensors(Path(path))
        files = CheckpointFiles.of(stored, {}) if stored else None
    return files is None or WeightPlan.of(empty_like(auto, config), files) is not None


def pickled_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of ``pytorch_model.bin`` or the files of its index; nothing in them is run, and no numbers are read.

    Raises:
        EnvironmentProblem: a file is damaged, or holds other things than tensors.
    """
    check_files(folder)
    single, index = (folder / name for name in PICKLES)
    names = [single.name] if single.is_file() else files_of_index(index) if index.is_file() else []
    found: dict[str, StoredTensor] = {}
    for name in names:
        found |= _pickled(folder / name)
    return found


def _pickled(file: Path) -> dict[str, StoredTensor]:
    try:
        content = torch.load(file, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise EnvironmentProblem(f"{file} is damaged, or holds more than tensors: {reason}") from error
    if not isinstance(content, Mapping) or not all(isinstance(one, Tensor) for one in content.values()):
        raise EnvironmentProblem(f"{file} holds other things than tensors by name")
    return {name: StoredTensor(file, _name_of(one), tuple(one.shape)) for name, one in content.items()}


def _name_of(tensor: Tensor) -> str:
    return _NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
