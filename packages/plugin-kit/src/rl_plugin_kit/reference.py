"""A small decoder in numpy (Qwen2, and Llama with it): what a backend and a generator are compared with.

It shares no code with what it checks. RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021) in the
half-split form of Hugging Face, grouped-query attention (Ainslie et al. 2023), SwiGLU (Shazeer 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import WeightBucket
from rl_core.contracts.model import ModelSpec

Weights = Mapping[str, np.ndarray]
"""Hugging Face name → float array."""

_EPSILON = {"qwen2": 1e-6, "llama": 1e-6}
_ROPE_BASE = 10000.0
_NUMPY_TYPES = {"float64": np.float64, "float32": np.float32, "float16": np.float16}


@dataclass(frozen=True)
class TinyShape:
    """Sizes of the model; embeddings are tied."""

    architecture: str = "qwen2"
    hidden_size: int = 32
    layers: int = 2
    heads: int = 2
    kv_heads: int = 1
    ffn: int = 48
    vocab_size: int = 32
    max_length: int = 32
    extra: Mapping[str, Any] = field(default_factory=dict)

    def spec(self, *, seed: int = 0) -> ModelSpec:
        """For ``load`` of a backend or a generator."""
        names = ("architecture", "hidden_size", "layers", "heads", "kv_heads", "ffn")
        init = {name: getattr(self, name) for name in names} | {"tie_embeddings": True, "extra": dict(self.extra)}
        special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
        return ModelSpec(
            init=init, vocab_size=self.vocab_size, special_tokens=special, seed=seed, max_length=self.max_length
        )

    def weights(self, seed: int) -> dict[str, np.ndarray]:
        """Random float32 weights, wide enough that the model prefers some tokens clearly."""
        draw = np.random.default_rng(seed)
        width = self.hidden_size // self.heads
        outputs = {"q": self.heads * width, "k": self.kv_heads * width, "v": self.kv_heads * width}
        found = {"model.embed_tokens.weight": draw.normal(0, 0.5, (self.vocab_size, self.hidden_size))}
        for layer in range(self.layers):
            name = f"model.layers.{layer}."
            for one, size in outputs.items():
                found[f"{name}self_attn.{one}_proj.weight"] = draw.normal(0, 0.3, (size, self.hidden_size))
                if self.architecture == "qwen2":
                    found[f"{name}self_attn.{one}_proj.bias"] = draw.normal(0, 0.3, size)
            found[f"{name}self_attn.o_proj.weight"] = draw.normal(0, 0.3, (self.hidden_size, outputs["q"]))
            for one, shape in (("gate", (self.ffn, self.hidden_size)), ("up", (self.ffn, self.hidden_size))):
                found[f"{name}mlp.{one}_proj.weight"] = draw.normal(0, 0.3, shape)
            found[f"{name}mlp.down_proj.weight"] = draw.normal(0, 0.3, (self.hidden_size, self.ffn))
            for norm in ("input_layernorm", "post_attention_layernorm"):
                found[f"{name}{norm}.weight"] = draw.uniform(0.5, 1.5, self.hidden_size)
        found["model.norm.weight"] = draw.uniform(0.5, 1.5, self.hidden_size)
        return {name: value.astype(np.float32) for name, value in found.items()}


def log_probs(shape: TinyShape, weights: Weights, tokens: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """float64 [T, vocabulary]: row ``t`` is the distribution of token ``t+1``, in float64 throughout."""
    exact = {name: value.astype(np.float64) for name, value in weights.items()}
    x = exact["model.embed_tokens.weight"][tokens]
    for layer in range(shape.layers):
        part = {name.partition(f"layers.{layer}.")[2]: value for name, value in exact.items()}
        x = x + _attention(shape, part, _norm(shape, x, part["input_layernorm.weight"]))
        y = _norm(shape, x, part["post_attention_layernorm.weight"])
        gate = y @ part["mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ part["mlp.up_proj.weight"].T)) @ part["mlp.down_proj.weight"].T
    head = exact.get("lm_head.weight", exact["model.embed_tokens.weight"])
    logits = _norm(shape, x, exact["model.norm.weight"]) @ head.T / temperature
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def token_log_probs(
    shape: TinyShape, weights: Weights, batch: SequenceBatch, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """``(log-probability, entropy)`` of each token given those before it, float64 [T]; 0 at first tokens."""
    chosen, entropy = np.zeros(len(batch.tokens)), np.zeros(len(batch.tokens))
    for index in range(len(batch)):
        where = batch.sequence(index)
        tokens = batch.tokens[where]
        rows = log_probs(shape, weights, tokens, temperature)[:-1]
        chosen[where][1:] = rows[np.arange(len(rows)), tokens[1:]]
        entropy[where][1:] = -(np.exp(rows) * rows).sum(-1)
    return chosen, entropy


def to_bucket(weights: Weights) -> WeightBucket:
    """The weights as a generator receives them."""
    arrays = [np.ascontiguousarray(value) for value in weights.values()]
    return WeightBucket(
        names=tuple(weights),
        shapes=tuple(value.shape for value in arrays),
        dtypes=tuple(str(value.dtype) for value in arrays),
        data=np.concatenate([value.reshape(-1).view(np.uint8) for value in arrays]),
    )


def from_buckets(buckets: Iterable[WeightBucket]) -> dict[str, np.ndarray]:
    """Hugging Face name → array; ``bfloat16`` becomes float32.

    Raises:
        ValueError: a bucket's names, shapes, dtypes and bytes do not fit together, or a name comes twice.
    """
    found: dict[str, np.ndarray] = {}
    for bucket in buckets:
        end = 0
        for name, shape, dtype in zip(bucket.names, bucket.shapes, bucket.dtypes, strict=True):
            if name in found:
                raise ValueError(f"{name} comes twice")
            start, end = end, end + int(np.prod(shape)) * (2 if dtype == "bfloat16" else _numpy_type(dtype).itemsize)
            data = np.asarray(bucket.data[start:end])
            found[name] = _read(data, dtype).reshape(shape)
        if end != len(bucket.data):
            raise ValueError(f"the bucket of {bucket.names[0]} has {len(bucket.data)} bytes, its parameters {end}")
    return found


def _read(data: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (np.frombuffer(data.tobytes(), np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data.tobytes(), _numpy_type(dtype))


def _numpy_type(dtype: str) -> np.dtype:
    if dtype not in _NUMPY_TYPES:
        raise ValueError(f"unknown dtype {dtype!r}")
    return np.dtype(_NUMPY_TYPES[dtype])


def _norm(shape: TinyShape, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    epsilon = shape.extra.get("rms_norm_eps", _EPSILON[shape.architecture])
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def _attention(shape: TinyShape, part: Weights, x: np.ndarray) -> np.ndarray:
    length, width = len(x), shape.hidden_size // shape.heads

    def project(one: str, heads: int) -> np.ndarray:
        bias = part.get(f"self_attn.{one}_proj.bias", 0.0)
        flat = x @ part[f"self_attn.{one}_proj.weight"].T + bias
        return flat.reshape(length, heads, width).transpose(1, 0, 2)

    query = _rotate(project("q", shape.heads))
    repeat = shape.heads // shape.kv_heads
    key, value = (
        np.repeat(one, repeat, axis=0) for one in (_rotate(project("k", shape.kv_heads)), project("v", shape.kv_heads))
    )
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(width)
    scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
    attention = np.exp(scores - scores.max(-1, keepdims=True))
    attention /= attention.sum(-1, keepdims=True)
    mixed = (attention @ value).transpose(1, 0, 2).reshape(length, -1)
    return mixed @ part["self_attn.o_proj.weight"].T


def _rotate(x: np.ndarray) -> np.ndarray:
    """Rotary positions on [heads, T, width]."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * _ROPE_BASE ** (-np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
