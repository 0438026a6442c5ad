"""Which parallel sizes fit which models: arithmetic for the config check, without torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from rl_core.config.problems import Problem
from rl_core.config.sections import Section
from rl_core.errors import EnvironmentProblem
from rl_huggingface.foreign import read_json_object
from rl_huggingface.model_folder import check_config

ARCHITECTURES = ("llama", "qwen2", "qwen3", "qwen3_moe")
"""Hugging Face model types that can be built and converted."""

VOCAB_MULTIPLE = 128
"""Vocabularies are padded to a multiple of this, so that checkpoints fit every ``tp`` that divides it."""


def padded_vocabulary(size: int, tp: int) -> int:
    """Rows of the embedding that are stored for a vocabulary of ``size``."""
    unit = math.lcm(VOCAB_MULTIPLE, tp)
    return -(-size // unit) * unit


class ParallelConfig(Section):
    """Parallelism; the number of ranks is dp × tp × pp × cp."""

    dp: int | None = Field(
        None, ge=1, description="Data-parallel copies of the model; default: as many as the GPUs allow, or ep."
    )
    tp: int = Field(1, ge=1, description="Tensor parallel: ranks that share every layer's matrices.")
    pp: int = Field(1, ge=1, description="Pipeline parallel: groups of layers on different ranks.")
    cp: int = Field(
        1,
        ge=1,
        description="Context parallel: ranks that share a sequence. Only 1; Megatron's needs Transformer Engine.",
    )
    ep: int = Field(
        1, ge=1, description="Expert parallel: data-parallel copies that share the experts of a mixture of experts."
    )
    sequence: bool = Field(
        False, description="Split activations between layers over the tensor-parallel ranks too: less memory."
    )

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tp * self.pp * self.cp

    def copies(self, gpus: int) -> int:
        """Data-parallel copies for a job with ``gpus`` GPUs in all (0: CPU)."""
        return self.dp or (max(1, gpus // self.model_ranks) if gpus else self.ep)


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that the parallel sizes must divide.

    Attributes:
        source: config keys they come from, e.g. ``model.init`` or a ``config.json``.
        ffn: width of the feed-forward part.
        experts: feed-forward parts of a layer that tokens choose from; 0 for a dense model.
    """

    source: str
    architecture: str
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    experts: int = 0

    @classmethod
    def of(cls, model: Any) -> Shape | None:
        """The shape of a :class:`~rl_core.config.sections.ModelConfig`; None for a model that is not here to be read.

        A hub id, or the export of an earlier stage that has not run yet, is checked when it is loaded.
        """
        if model.init is not None:
            init = model.init
            ffn = init.ffn or 4 * init.hidden_size
            experts = init.extra.get("num_experts", 0)
            heads = init.kv_heads or init.heads
            return cls("model.init", init.architecture, init.layers, init.heads, heads, ffn, experts)
        path = Path(model.path) / "config.json"
        if not path.is_file():
            return None
        try:
            config = read_json_object(path)
            check_config(config, where=path)
        except EnvironmentProblem:
            return None  # the check of the model's folder reports it
        return cls.of_config(config, source=str(path))

    @classmethod
    def of_config(cls, config: Mapping[str, Any], *, source: str) -> Shape:
        """The shape in a Hugging Face config; fields it lacks become 0, which everything divides."""
        heads = config.get("num_attention_heads") or 0
        return cls(
            source,
            config.get("model_type") or "unknown",
            config.get("num_hidden_layers") or 0,
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("intermediate_size") or 0,
            config.get("num_experts") or config.get("num_local_experts") or 0,
        )


def ranks_problems(parallel: ParallelConfig, *, gpus: int, nodes: int) -> Iterator[Problem]:
    """Whether ``parallel`` and the number of GPUs (``gpus`` on each of ``nodes``) go together."""
    if parallel.cp > 1:
        yield Problem(
            path="backend.parallel.cp",
            message=f"cp {parallel.cp}: Megatron Core splits sequences over ranks only inside Transformer Engine's "
            "attention on CUDA, which this version does not support",
            fix="set backend.parallel.cp=1; for long sequences use tp with sequence: true, or backend: {name: fsdp2}",
        )
    if parallel.sequence and parallel.tp == 1:
        yield Problem(
            path="backend.parallel.sequence",
            message="sequence: true splits activations over tensor-parallel ranks, and tp is 1",
            fix="set backend.parallel.tp to 2 or more, or remove sequence",
        )
    total, per_copy = gpus * nodes, parallel.model_ranks
    copies = parallel.copies(total)
    if copies % parallel.ep:
        yield Problem(
            path="backend.parallel.ep",
            message=f"ep {parallel.ep} spreads experts over data-parallel copies, whose number is {copies}",
            fix=f"set backend.parallel.ep to a divisor of {copies}, or parallel.dp to a multiple of {parallel.ep}",
        )
    if not total:
        return
    found = f"{total} GPUs (run.gpus {gpus} × run.nodes {nodes})"
    needs = f"tp {parallel.tp} × pp {parallel.pp} × cp {parallel.cp} = {per_copy}"
    if total % per_copy:
        yield Problem(
            path="backend.parallel",
            message=f"one copy of the model takes {needs} GPUs, which does not divide {found}",
            fix=f"choose tp × pp × cp among the divisors of {total}",
        )
    elif parallel.dp not in (None, total // per_copy):
        yield Problem(
            path="backend.parallel.dp",
            message=f"dp {parallel.dp} × {needs} is {parallel.dp * per_copy} ranks, but there are {found}",
            fix=f"leave backend.parallel.dp out, or set it to {total // per_copy}",
        )


def division_problems(parallel: ParallelConfig, shape: Shape) -> Iterator[Problem]:
    """Whether ``parallel`` divides the model's numbers."""
    if shape.architecture not in ARCHITECTURES:
        yield Problem(
            path="backend.name",
            message=f"{shape.source}: the megatron backend cannot build {shape.architecture!r} models",
            fix=f"choose one of {', '.join(ARCHITECTURES)}, or backend: {{name: fsdp2}}",
        )
        return
    yield from _expert_problems(parallel, shape)
    for what, count in (
        ("attention heads", shape.heads),
        ("key/value heads", shape.kv_heads),
        ("feed-forward width", shape.ffn),
    ):
        yield from _division("tp", parallel.tp, what, count, shape.source)
    yield from _division("pp", parallel.pp, "layers", shape.layers, shape.source)


def _expert_problems(parallel: ParallelConfig, shape: Shape) -> Iterator[Problem]:
    if parallel.ep > 1 and not shape.experts:
        yield Problem(
            path="backend.parallel.ep",
            message=f"{shape.source}: ep {parallel.ep}: a {shape.architecture} model has no experts to spread",
            fix="set backend.parallel.ep=1",
        )
    elif shape.experts:
        yield from _division("ep", parallel.ep, "experts", shape.experts, shape.source)
    if parallel.tp > 1 and shape.experts:
        yield Problem(
            path="backend.parallel.tp",
            message=f"{shape.source}: tp {parallel.tp}: this version does not split models with experts by tensors",
            fix="set backend.parallel.tp=1, and use ep and pp",
        )


def _division(key: str, parts: int, what: str, count: int, source: str) -> Iterator[Problem]:
    if count % parts:
        fits = ", ".join(str(n) for n in range(1, min(count, 64) + 1) if count % n == 0)
        yield Problem(
            path=f"backend.parallel.{key}",
            message=f"{source}: {what} {count} / {key} {parts} leaves a remainder of {count % parts}",
            fix=f"set backend.parallel.{key} to one of {fits}",
        )
