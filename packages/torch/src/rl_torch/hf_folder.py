"""Writing Hugging Face folders: safetensors of limited size, and the config next to them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from rl_core.errors import EnvironmentProblem
from safetensors.torch import save_file
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel
from transformers.utils.hub import cached_file

_GENERATION = "generation_config.json"

MAX_FILE_BYTES = 4 * 2**30
"""A new file is begun rather than exceed this; one file's tensors are in host memory at a time."""


def write_config(directory: Path, model: PreTrainedModel, *, dtype: torch.dtype) -> None:
    """Write ``config.json``, and where it generates ``generation_config.json``; weights of ``model`` are not read.

    A generation config that came with the model is copied as it is: transformers refuses to write some that it reads
    (Vicuna's has a temperature, and no sampling that would use it).
    """
    model.config.architectures = [type(model).__name__]
    model.config.dtype = dtype
    model.config.save_pretrained(directory)
    if not model.can_generate():
        return
    if (given := _given_generation_config(model)) is not None:
        shutil.copyfile(given, directory / _GENERATION)
    else:
        model.generation_config.to_json_file(directory / _GENERATION)


def check_writable(model: PreTrainedModel, *, dtype: torch.dtype) -> None:
    """Write what :func:`write_config` would, and forget it: better to know before a training than after it.

    Raises:
        EnvironmentProblem: it cannot be written, or transformers would not read the trained model from it.
    """
    _check_read_again(model)
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_config(Path(folder), model, dtype=dtype)
        except Exception as error:  # a family's own checks of its config
            raise EnvironmentProblem(
                f"the config of {type(model).__name__}, which an export writes, cannot be written: "
                f"{type(error).__name__}: {error}\n    correct config.json of the model"
            ) from error


def _check_read_again(model: PreTrainedModel) -> None:
    config, name = model.config, type(model).__name__
    own_code = not type(config).__module__.startswith("transformers.")
    kinds: tuple[Any, ...] = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
    if not own_code and not any(type(config) in kind for kind in kinds):
        raise EnvironmentProblem(
            f"transformers {transformers.__version__} cannot load an exported {name} by itself: no class of models "
            f"for text reads its config ({config.model_type})\n    choose a model without a part for images"
        )
    if config.model_type == "youtu" and config.tie_word_embeddings and config.pad_token_id is not None:
        # Unlike in other families, it does so after the folder's weights are in place.
        raise EnvironmentProblem(
            f"{name}: transformers sets the embedding of token {config.pad_token_id} (pad_token_id) to zero whenever "
            "it loads such a model, and the output layer has the same weight, so it would not load what is trained\n"
            "    remove pad_token_id from config.json of the model"
        )


def _given_generation_config(model: PreTrainedModel) -> str | None:
    """The file in the folder, or at the hub, that ``model`` or its config was read from."""
    source = model.config.name_or_path
    if not source:
        return None
    try:
        return cached_file(source, _GENERATION)
    except OSError:  # has none
        return None


def write_safetensors(directory: Path, named: Iterable[tuple[str, Tensor]], *, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Write ``model.safetensors``, or several files and their index where it would be larger than ``max_bytes``."""
    files: list[tuple[Path, list[str]]] = []
    part: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        path = directory / f".part-{len(files):05d}.safetensors"
        save_file(part, path, metadata={"format": "pt"})
        files.append((path, list(part)))
        part.clear()

    for name, tensor in named:
        nbytes = tensor.numel() * tensor.element_size()
        if part and size + nbytes > max_bytes:
            flush()
            size = 0
        part[name] = tensor.detach().to("cpu").contiguous().clone()
        size, total = size + nbytes, total + nbytes
    flush()
    if len(files) == 1:
        files[0][0].rename(directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for index, (path, names) in enumerate(files, start=1):
        final = f"model-{index:05d}-of-{len(files):05d}.safetensors"
        path.rename(directory / final)
        weight_map |= dict.fromkeys(names, final)
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")
