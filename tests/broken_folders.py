"""Model folders that are damaged, odd or hostile, each made from a good one by one change."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Part = Literal["model", "tokenizer"]
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, ABOUT = "tokenizer.json", "tokenizer_config.json"


@dataclass(frozen=True)
class Broken:
    """A change to a folder.

    Attributes:
        part: what cannot be loaded then.
        sharded: whether it is a change to a folder of two files and an index.
        checked: whether ``rl check`` finds it, which imports no tensor library.
    """

    name: str
    change: Callable[[Path], None]
    part: Part = "model"
    sharded: bool = False
    checked: bool = True


def good_folder(path: Path, *, sharded: bool = False) -> Path:
    """A Llama of 2 layers with a tokenizer of 64 words."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(path, max_shard_size="15KB" if sharded else "1GB")
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, 64)}}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    tokenizer.save_pretrained(path)
    return path


def make(broken: Broken, good: Path, sharded: Path, folder: Path) -> Path:
    """The broken folder, in ``folder``."""
    shutil.copytree(sharded if broken.sharded else good, folder)
    broken.change(folder)
    return folder


def broken_folders() -> list[Broken]:
    """All of them, each with a name of its own."""
    found = [
        *_cut_files(),
        *_headers(),
        *_no_files(),
        *_indices(),
        *_configs(),
        *_sizes(),
        *_other_weights(),
        *_tokenizers(),
    ]
    assert len({one.name for one in found}) == len(found)
    return found


def _cut_files() -> Iterator[Broken]:
    for size in (0, 4, 8, 100, 1000, 5000):
        yield Broken(f"weights cut to {size} bytes", lambda f, n=size: os.truncate(f / WEIGHTS, n))
    yield Broken(
        "weights without their last byte", lambda f: os.truncate(f / WEIGHTS, (f / WEIGHTS).stat().st_size - 1)
    )
    yield Broken("weights with a byte too many", lambda f: _append(f / WEIGHTS, b"\0"))
    yield Broken("a git-lfs pointer for weights", lambda f: (f / WEIGHTS).write_text(_LFS))
    yield Broken("a git-lfs pointer for the config", lambda f: (f / CONFIG).write_text(_LFS))
    yield Broken("a web page for weights", lambda f: (f / WEIGHTS).write_text("<!DOCTYPE html><html>404</html>"))
    yield Broken("a web page for the config", lambda f: (f / CONFIG).write_text("<!DOCTYPE html><html>404</html>"))
    yield Broken("weights of zeros", lambda f: (f / WEIGHTS).write_bytes(bytes(4096)))
    yield Broken("no weights", lambda f: (f / WEIGHTS).unlink(), checked=False)
    yield Broken("no config", lambda f: (f / CONFIG).unlink())
    yield Broken("an empty config", lambda f: (f / CONFIG).write_bytes(b""))
    yield Broken("half a config", lambda f: os.truncate(f / CONFIG, (f / CONFIG).stat().st_size // 2))
    yield Broken("pickles cut", _cut_pickle, checked=False)
    yield Broken("pickles that are text", lambda f: _replace(f, "pytorch_model.bin", b"hello"), checked=False)
    yield Broken("pickles that hold a function", _pickled_function, checked=False)
    yield Broken("pickles that hold a number", lambda f: _pickled(f, 7), checked=False)
    yield Broken("pickles of integers", lambda f: _pickled(f, _integers(f)), checked=False)


def _headers() -> Iterator[Broken]:
    for name, length in (("of 2^63 bytes", 2**63), ("of 2^64 - 1 bytes", 2**64 - 1), ("of 99 MB", 99_000_000)):
        yield Broken(f"a header {name}", lambda f, n=length: _raw(f, struct.pack("<Q", n) + b"{}"))
    for name, text in (
        ("that is no JSON", b"{nope}"),
        ("that is a list", b"[]"),
        ("that is null", b"null"),
        ("with bad UTF-8", b'{"\xff": 1}'),
        ("nested 100,000 deep", b'{"a":' * 100_000),
        ("with an entry that is a number", b'{"a": 1}'),
        ("with an entry without a type", b'{"a": {"shape": [1], "data_offsets": [0, 4]}}'),
        ("with an unknown type", b'{"a": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}}'),
        ("with a negative shape", b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}'),
        ("with a shape of text", b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}'),
        ("with offsets backwards", b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}'),
        ("with offsets of text", b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": "ab"}}'),
        (
            "with a number of 5,000 digits",
            b'{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 4]}}' % (b"9" * 5000),
        ),
    ):
        yield Broken(f"a header {name}", lambda f, t=text: _raw(f, struct.pack("<Q", len(t)) + t + bytes(4)))
    yield Broken("tensors that overlap", lambda f: _header(f, _overlap))
    yield Broken("tensors outside the file", lambda f: _header(f, _outside))
    yield Broken("a tensor larger than its bytes", lambda f: _header(f, _grown))


def _no_files() -> Iterator[Broken]:
    for name in (CONFIG, WEIGHTS):
        yield Broken(f"a pipe for {name}", lambda f, n=name: _pipe(f / n))
        yield Broken(f"a folder for {name}", lambda f, n=name: _folder(f / n))
        yield Broken(f"a link to nothing for {name}", lambda f, n=name: _link(f / n, f / "nothing"))
        yield Broken(f"a link to itself for {name}", lambda f, n=name: _link(f / n, f / n))
        yield Broken(f"a device for {name}", lambda f, n=name: _link(f / n, Path("/dev/zero")))
    yield Broken("a pipe for an index", lambda f: _pipe(f / INDEX))
    yield Broken("a pipe for the generation config", lambda f: _pipe(f / "generation_config.json"))
    yield Broken("a pipe for a custom file", lambda f: os.mkfifo(f / "chat_template.jinja"))


def _indices() -> Iterator[Broken]:
    for name, text in (
        ("that is no JSON", "{"),
        ("that is a list", "[]"),
        ("without a weight_map", "{}"),
        ("with an empty weight_map", '{"weight_map": {}}'),
        ("with a weight_map of a list", '{"weight_map": []}'),
        ("that maps to a number", '{"weight_map": {"a": 1}}'),
        ("that maps to null", '{"weight_map": {"a": null}}'),
        ("that maps to an empty name", '{"weight_map": {"a": ""}}'),
        ("that maps to the folder", '{"weight_map": {"a": "."}}'),
        ("that maps outside", '{"weight_map": {"a": "../../../../etc/passwd"}}'),
        ("that maps to an absolute path", '{"weight_map": {"a": "/etc/passwd"}}'),
        ("that maps to a device", '{"weight_map": {"a": "/dev/zero"}}'),
        ("that maps to a missing file", '{"weight_map": {"a": "model-9.safetensors"}}'),
        ("that maps to a name with a zero byte", '{"weight_map": {"a": "a\\u0000b"}}'),
        ("that maps to a very long name", json.dumps({"weight_map": {"a": "x" * 5000}})),
        ("nested 100,000 deep", "[" * 100_000),
    ):
        yield Broken(f"an index {name}", lambda f, t=text: (f / INDEX).write_text(t), sharded=True)
    yield Broken("a missing shard", lambda f: next(iter(sorted(f.glob("model-*")))).unlink(), sharded=True)
    yield Broken("a shard cut", lambda f: os.truncate(sorted(f.glob("model-*"))[-1], 200), sharded=True)
    yield Broken("a pipe for a shard", lambda f: _pipe(sorted(f.glob("model-*"))[0]), sharded=True)


def _configs() -> Iterator[Broken]:
    for name, text in (
        ("a list", "[]"),
        ("null", "null"),
        ("a number", "7"),
        ("a text", '"llama"'),
        ("an empty object", "{}"),
        ("nested 100,000 deep", '{"a":' * 100_000),
        ("nested 900 deep", '{"model_type": "llama", "a": ' + "[" * 900 + "]" * 900 + "}"),
        ("with a number of 5,000 digits", '{"model_type": "llama", "hidden_size": ' + "9" * 5000 + "}"),
    ):
        yield Broken(
            f"a config that is {name}", lambda f, t=text: (f / CONFIG).write_text(t), checked=name != "an empty object"
        )
    yield Broken("a config with bad UTF-8", lambda f: _append(f / CONFIG, b"\xff"))
    yield Broken("a config with a byte order mark", lambda f: _prepend(f / CONFIG, b"\xef\xbb\xbf"))
    yield Broken("a config in UTF-16", lambda f: (f / CONFIG).write_bytes((f / CONFIG).read_text().encode("utf-16")))
    yield Broken("a config of 65 MB", lambda f: _prepend(f / CONFIG, b" " * (65 * 2**20)))
    for kind in ("no-such-model", "../../x", 7, None, ["llama"], {"a": 1}):
        yield Broken(
            f"a model type {kind!r}",
            lambda f, k=kind: _fields(f, model_type=k),
            checked=not isinstance(kind, str | None),
        )
    yield Broken("rope_parameters of text", lambda f: _fields(f, rope_parameters="x"), checked=False)
    yield Broken(
        "an unknown rope type",
        lambda f: _fields(f, rope_parameters={"rope_type": "no", "rope_theta": 1e4}),
        checked=False,
    )
    yield Broken("an unknown activation", lambda f: _fields(f, hidden_act="no"), checked=False)
    yield Broken("a quantisation without a method", lambda f: _fields(f, quantization_config={"a": 1}))
    for method in ("gptq", "awq", "bitsandbytes", "no-such-method"):
        options = {"quant_method": method, "bits": 4}
        yield Broken(f"{method} weights", lambda f, o=options: _fields(f, quantization_config=o))


def _sizes() -> Iterator[Broken]:
    odd: tuple[Any, ...] = (0, -1, 2**40, 10**30, "16", "x", 1.5, True, float("inf"), float("nan"), {})
    for field in ("num_attention_heads", "hidden_size"):
        for value in odd:
            yield Broken(f"{field} {value!r}", lambda f, k=field, v=value: _fields(f, **{k: v}))
    for field, value in (
        ("vocab_size", -5),
        ("vocab_size", 0),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", -1),
        ("intermediate_size", "wide"),
        ("num_key_value_heads", -2),
        ("max_position_embeddings", float("inf")),
        ("rms_norm_eps", float("nan")),
        ("head_dim", 0),
    ):
        yield Broken(f"{field} {value!r}", lambda f, k=field, v=value: _fields(f, **{k: v}))


def _other_weights() -> Iterator[Broken]:
    for field, value in (
        ("num_hidden_layers", 1),
        ("num_hidden_layers", 3),
        ("intermediate_size", 12),
        ("intermediate_size", 48),
        ("vocab_size", 32),
        ("vocab_size", 128),
        ("hidden_size", 8),
        ("num_key_value_heads", 1),
        ("num_attention_heads", 3),
    ):
        yield Broken(
            f"a config of {field} {value}",
            lambda f, k=field, v=value: _fields(f, **{k: v}),
            checked="heads" not in field,
        )
    for kind in (torch.int8, torch.float8_e4m3fn, torch.uint8, torch.int64):
        yield Broken(f"weights in {kind}", lambda f, k=kind: _cast(f, k))


def _tokenizers() -> Iterator[Broken]:
    for name, text in (
        ("empty", ""),
        ("no JSON", "{"),
        ("a list", "[]"),
        ("null", "null"),
        ("an empty object", "{}"),
        ("a git-lfs pointer", _LFS_TEXT),
        ("nested 100,000 deep", "[" * 100_000),
        ("without a vocabulary", '{"version": "1.0", "model": {"type": "WordLevel"}}'),
        ("of an unknown kind", '{"version": "1.0", "model": {"type": "No", "vocab": {}}}'),
    ):
        yield Broken(
            f"a tokenizer.json that is {name}",
            lambda f, t=text: (f / TOKENIZER).write_text(t),
            "tokenizer",
        )
    yield Broken("a pipe for tokenizer.json", lambda f: _pipe(f / TOKENIZER), "tokenizer")
    yield Broken("a folder for tokenizer.json", lambda f: _folder(f / TOKENIZER), "tokenizer")
    yield Broken("a pipe for tokenizer_config.json", lambda f: _pipe(f / ABOUT), "tokenizer")
    for name, text in (("no JSON", "{"), ("a list", "[]"), ("nested 100,000 deep", "[" * 100_000)):
        yield Broken(
            f"a tokenizer_config.json that is {name}", lambda f, t=text: (f / ABOUT).write_text(t), "tokenizer"
        )


_LFS_TEXT = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
_LFS = _LFS_TEXT


def _append(file: Path, data: bytes) -> None:
    file.write_bytes(file.read_bytes() + data)


def _prepend(file: Path, data: bytes) -> None:
    file.write_bytes(data + file.read_bytes())


def _raw(folder: Path, data: bytes) -> None:
    (folder / WEIGHTS).write_bytes(data)


def _header(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    _raw(folder, struct.pack("<Q", len(text)) + text + data[8 + length :])


def _entries(header: dict[str, Any]) -> list[dict[str, Any]]:
    found = [entry for name, entry in header.items() if name != "__metadata__"]
    return sorted(found, key=lambda entry: entry["data_offsets"])


def _overlap(header: dict[str, Any]) -> None:
    first, second = _entries(header)[:2]
    size = second["data_offsets"][1] - second["data_offsets"][0]
    second["data_offsets"] = [first["data_offsets"][0], first["data_offsets"][0] + size]


def _outside(header: dict[str, Any]) -> None:
    last = _entries(header)[-1]
    last["data_offsets"] = [n + 10**9 for n in last["data_offsets"]]


def _grown(header: dict[str, Any]) -> None:
    _entries(header)[0]["shape"][0] *= 2


def _pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _link(file: Path, target: Path) -> None:
    file.unlink()
    file.symlink_to(target)


def _fields(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))


def _cast(folder: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / WEIGHTS)
    save_file({n: t.to(dtype) if t.dim() == 2 else t for n, t in weights.items()}, folder / WEIGHTS, {"format": "pt"})


def _replace(folder: Path, name: str, data: bytes) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(data)


def _integers(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor.to(torch.int8) for name, tensor in load_file(folder / WEIGHTS).items()}


def _pickled(folder: Path, content: object) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(content, folder / "pytorch_model.bin")


def _pickled_function(folder: Path) -> None:
    _pickled(folder, {"a": os.system})


def _cut_pickle(folder: Path) -> None:
    _pickled(folder, {"a": torch.zeros(100, 100)})
    os.truncate(folder / "pytorch_model.bin", 3000)
