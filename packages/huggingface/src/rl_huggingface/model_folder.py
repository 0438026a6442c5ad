"""What lies in a model's folder, known from small reads alone: its ``config.json`` and the headers of its weights.

Nothing here imports a tensor library, so a check before a run can use it. Formats: ``config.json``,
``model.safetensors.index.json`` and safetensors (8 bytes little-endian: length of a JSON header; the header; the data).
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_core.errors import EnvironmentProblem

from rl_huggingface.foreign import foreign, open_regular, read_json_object

CONFIG = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""

_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
}
_READ = re.compile(r"\.(json|safetensors|bin|model|jinja|txt|tiktoken|py|index)$")

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_SIZES = (
    *("hidden_size", "n_embd", "d_model", "vocab_size", "num_attention_heads", "n_head", "n_heads", "num_heads"),
    *("intermediate_size", "ffn_dim", "head_dim", "max_position_embeddings", "n_positions"),
)
_MAY_BE_ZERO = ("num_key_value_heads", "num_kv_heads", "n_inner", *_EXPERTS)
LLAMA_LIKE = frozenset(
    (
        *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text"),
        *("phi3", "olmo", "olmo2", "olmoe", "smollm3", "deepseek_v2", "deepseek_v3", "glm", "glm4", "glm4_moe"),
        *("gpt_oss", "granite", "cohere", "starcoder2"),
    )
)
"""Model types whose embedding ``[vocab_size, hidden_size]`` and ``layers`` lie where Llama's do."""
_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.")
_OTHER_FILES = "    give the config.json that belongs to these files, or copy the model again"
_MOST_LAYERS, _MOST_EXPERTS, _MOST = 512, 4096, 2**31


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file; ``dtype`` as the format names it (``BF16``, ``F8_E4M3``)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def check_model_folder(path: str | os.PathLike[str]) -> None:
    """Look at what loading a local model folder reads, of weights only at headers; there may be none yet.

    Raises:
        EnvironmentProblem: a file is missing, cut or malformed, or something that is no file stands in its place.
    """
    folder = Path(path)
    with foreign(path):
        check_files(folder)
        config = read_config(folder)
        stored = stored_tensors(folder) or {}
        check_counts(config, stored, where=folder / CONFIG)
        check_fit(config, stored)


def check_files(folder: Path) -> None:
    """Refuse pipes, devices and folders with the names of files; links are followed."""
    with os.scandir(folder) as entries:
        found = list(entries)
    for entry in found:
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            if _READ.search(entry.name):
                raise EnvironmentProblem(f"{entry.path} cannot be read: {error.strerror}") from error
            continue
        if not stat.S_ISREG(mode) and (not stat.S_ISDIR(mode) or _READ.search(entry.name)):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device"
            raise EnvironmentProblem(f"{entry.path} is {kind}, not a file\n    remove it from the model's folder")


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json``, with numbers that a model can be built with.

    Raises:
        EnvironmentProblem: it is missing, malformed, or a size in it is no positive number.
    """
    file = folder / CONFIG
    if not os.path.lexists(file):
        raise EnvironmentProblem(
            f"the folder {folder} is no model: it has no {CONFIG} (it holds {_shown(folder)})\n"
            f"    give a Hugging Face folder with {CONFIG}, or a hub id this machine can download"
        )
    config = read_json_object(file)
    check_config(config, where=file)
    return config


def check_config(config: Mapping[str, Any], *, where: Path) -> None:
    """Raise EnvironmentProblem for sizes and numbers that describe no model."""
    parts = [config, *(part for key in ("text_config", "llm_config") if isinstance(part := config.get(key), Mapping))]
    for part in parts:
        for key, number in _numbers(part):
            if not math.isfinite(number):
                raise EnvironmentProblem(f"{where}: {key} is {number}, not a finite number")
        for key in (*_SIZES, *_LAYERS, *_MAY_BE_ZERO):
            value = part.get(key)
            for one in value if isinstance(value, list) else () if value is None else (value,):
                least = 0 if key in _MAY_BE_ZERO else 1
                if type(one) is not int or not least <= one <= _MOST:
                    raise EnvironmentProblem(f"{where}: {key} is {_short(value)}, not a number from {least} to 2^31")
    model_type = config.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise EnvironmentProblem(f"{where}: model_type is {_short(model_type)}, not a name")


def check_counts(config: Mapping[str, Any], stored: Mapping[str, StoredTensor], *, where: Path) -> None:
    """Refuse numbers of layers and experts that no file backs: building them would take for ever."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for keys, most in ((_LAYERS, _MOST_LAYERS), (_EXPERTS, _MOST_EXPERTS)):
            for key in keys:
                count = part.get(key)
                if isinstance(count, int) and count > most and count > highest_number(stored) + 1:
                    raise EnvironmentProblem(
                        f"{where}: {key} is {count:,}, but the weights' highest number of a layer or expert is "
                        f"{highest_number(stored)}"
                    )


def check_fit(config: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> None:
    """Compare vocabulary, width and layers with the names and shapes in the files, where a family is built like Llama.

    Loading compares everything, of every family; this finds wrong files in milliseconds.

    Raises:
        EnvironmentProblem: weights are missing, have another shape, or belong to no layer of the model.
    """
    sizes = [config.get("vocab_size"), config.get("hidden_size")]
    layers = config.get("num_hidden_layers")
    known = config.get("model_type") in LLAMA_LIKE and "auto_map" not in config
    if not (known and stored and isinstance(layers, int) and all(isinstance(one, int) for one in sizes)):
        return
    quantized = any(config.get(key) for key in ("quantization_config", "compression_config"))
    embedding, projection = (sizes[0], sizes[1]), (sizes[1], config.get("intermediate_size"))
    for name, shape in (
        ("model.embed_tokens.weight", embedding),
        ("embed_tokens.weight", embedding),
        ("lm_head.weight", embedding),
        ("model.layers.0.mlp.down_proj.weight", projection),
    ):
        tensor = stored.get(name)
        if tensor is None or not all(isinstance(one, int) for one in shape):
            continue
        is_float = tensor.dtype in ("F64", "F32", "F16", "BF16")
        if not is_float and not quantized:
            raise EnvironmentProblem(
                "the files hold quantised numbers for float weights, and not how they are scaled: "
                f"{name} is {tensor.dtype} {list(tensor.shape)}\n"
                "    give a copy of the model with float weights, or the config.json with its quantization_config"
            )
        if is_float and tensor.shape != shape:
            raise EnvironmentProblem(
                f"the files do not fit the config.json: {name} is {list(tensor.shape)}, not {list(shape)}\n"
                + _OTHER_FILES
            )
    names: dict[int, list[str]] = {}
    for name in stored:
        if match := _LAYER.match(name):
            names.setdefault(int(match[1]), []).append(name)
    if missing := [number for number in range(layers) if number not in names]:
        text = f"{', '.join(map(str, missing[:5]))}{', …' if len(missing) > 5 else ''}"
        raise EnvironmentProblem(
            f"the folder lacks the weights of the layers {text} (num_hidden_layers: {layers})\n{_OTHER_FILES}"
        )
    extra = config.get("num_nextn_predict_layers")  # lie behind the layers, and are not trained
    extra = extra if isinstance(extra, int) else 0
    if beyond := [name for number in sorted(names) if number >= layers + extra for name in names[number]]:
        raise EnvironmentProblem(
            "the files hold weights that the model of this config.json does not have: "
            f"{', '.join(beyond[:3])}{', …' if len(beyond) > 3 else ''}\n{_OTHER_FILES}"
        )


def highest_number(names: Mapping[str, object]) -> int:
    """The highest number that is a part of a name, such as 7 of ``layers.7.weight``; -1 without any."""
    return max((int(part) for name in names for part in name.split(".") if part.isdecimal()), default=-1)


def stored_tensors(folder: Path) -> dict[str, StoredTensor] | None:
    """The tensors of a local folder's safetensors files, by name; None where it has no such file.

    As transformers reads it: ``model.safetensors`` before an index, and all tensors of the files an index names.

    Raises:
        EnvironmentProblem: a file is missing, cut or malformed, or lies outside the folder.
    """
    if os.path.lexists(folder / SINGLE):
        return read_header(folder / SINGLE)
    if not os.path.lexists(folder / INDEX):
        return None
    found: dict[str, StoredTensor] = {}
    for name in files_of_index(folder / INDEX):
        found |= read_header(folder / name)
    return found


def files_of_index(index: Path) -> list[str]:
    """The files that an index names, relative to its folder, sorted.

    Raises:
        EnvironmentProblem: it is malformed, or names a file outside its folder.
    """
    names = read_json_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise EnvironmentProblem(f"{index} has no weight_map")
    files = set()
    for name, file in names.items():
        if not isinstance(file, str) or not file or "\0" in file:
            raise EnvironmentProblem(f"{index}: the file of {name!r} is {_short(file)}, not a name")
        parts = Path(file).parts
        if os.path.isabs(file) or ".." in parts or "\\" in file:
            raise EnvironmentProblem(f"{index}: {_short(file)} lies outside the model's folder")
        files.add(file)
    return sorted(files)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, with everything in its header checked against the file's size.

    Raises:
        EnvironmentProblem: the file is missing, cut, or no safetensors file.
    """
    with open_regular(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        start = opened.read(8)
        if start == b"version ":
            raise EnvironmentProblem(f"{file} is a git-lfs pointer, not weights\n    run git lfs pull in its folder")
        if len(start) < 8:
            raise EnvironmentProblem(f"{file} is empty or cut: it has {size} bytes")
        (length,) = struct.unpack("<Q", start)
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise EnvironmentProblem(
                f"{file} is cut, or no safetensors file: its header would have {length:,} bytes, the file has {size:,}"
            )
        raw = opened.read(length)
    try:
        header = json.loads(raw.decode("utf-8"))
        return dict(_tensors(header, file, size - 8 - length))
    except RecursionError as error:
        raise EnvironmentProblem(f"{file}: its header is nested too deeply") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EnvironmentProblem(f"{file} is cut, or no safetensors file: {error}") from error


def _tensors(header: Any, file: Path, size: int) -> Iterator[tuple[str, StoredTensor]]:
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    ends: list[tuple[int, int]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            raise ValueError(f"{name} has the shape {_short(shape)} at {_short([begin, end])}")
        if dtype not in _BITS:
            raise ValueError(f"{name} has the unknown type {_short(dtype)}")
        if (end - begin) * 8 != math.prod(shape) * _BITS[dtype]:
            raise ValueError(f"{name} is {dtype} {shape}, which does not take {end - begin:,} bytes")
        ends.append((begin, end))
        yield name, StoredTensor(file, dtype, tuple(shape))
    reached = 0
    for begin, end in sorted(ends):
        if begin != reached:
            raise ValueError("tensors overlap, or leave gaps" if end <= size else "tensors lie behind the file's end")
        reached = end
    if reached != size:
        raise ValueError(f"its tensors take {reached:,} bytes, the file has {size:,} for them")


def _numbers(part: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Numbers of an object and of the objects about positions in it; lists may hold infinities (Mamba's limits)."""
    for key, value in part.items():
        if isinstance(value, float):
            yield key, value
        elif key in ("rope_parameters", "rope_scaling") and isinstance(value, Mapping):
            for inner, number in value.items():
                if isinstance(number, float):
                    yield f"{key}.{inner}", number


def _shown(folder: Path) -> str:
    names = sorted(os.listdir(folder))
    return (", ".join(names[:6]) + (", …" if len(names) > 6 else "")) or "nothing"


def _short(value: object) -> str:
    # A number of 5,000 digits cannot even be shown.
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**18:
        return "a number of more than 18 digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
