"""Input and output of the hook ``rate_backends``: a job, and a backend's rating of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rl_core.contracts.model import AdapterSpec, Head, Role

if TYPE_CHECKING:
    from rl_core.contracts.algorithm import AlgorithmInput


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters by group.

    Attributes:
        embedding: token embedding, and position embedding where it is learned.
        layer: one decoder block, all its experts included.
        layers: number of blocks.
        norm: the last norm.
        head: the output projection; 0 where it shares the embedding.
    """

    embedding: int
    layer: int
    layers: int
    norm: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.layer * self.layers + self.norm + self.head


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only transformer, as far as memory depends on them.

    Attributes:
        architecture: Hugging Face model type, e.g. ``qwen2``.
        hidden_size: width of the residual stream.
        layers: decoder blocks.
        heads, kv_heads: attention heads, and those of keys and values.
        head_dim: width of one head.
        ffn: width of the feed-forward part (of one expert, where there are experts).
        vocab_size: rows of the embedding.
        tie_embeddings: the output projection is the token embedding.
        gated: the feed-forward part has three matrices (SwiGLU) instead of two.
        attention_bias: queries, keys and values have biases.
        linear_bias: all other linear layers and the norms have biases, too.
        qk_norm: queries and keys are normalised per head.
        positions: rows of a learned position embedding; 0 for rotary positions.
        experts: experts per block; 0 for a dense model.
        experts_per_token: how many of them see a token.
        shared_ffn: width of the experts that see every token.
    """

    architecture: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab_size: int
    tie_embeddings: bool
    gated: bool = True
    attention_bias: bool = False
    linear_bias: bool = False
    qk_norm: bool = False
    positions: int = 0
    experts: int = 0
    experts_per_token: int = 0
    shared_ffn: int = 0

    @property
    def query_width(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Width of all keys of a token, and of all values."""
        return self.kv_heads * self.head_dim

    def linears(self) -> dict[str, tuple[int, int]]:
        """Linear layers of a dense block: Llama's name → (inputs, outputs). Experts are not among them."""
        hidden, ffn = self.hidden_size, self.ffn
        found = {
            "q_proj": (hidden, self.query_width),
            "k_proj": (hidden, self.key_width),
            "v_proj": (hidden, self.key_width),
            "o_proj": (self.query_width, hidden),
        }
        if not self.experts:
            found |= {"gate_proj": (hidden, ffn)} if self.gated else {}
            found |= {"up_proj": (hidden, ffn), "down_proj": (ffn, hidden)}
        return found

    def parameters(self, head: Head = "lm") -> ParameterCount:
        """Counts by group; with a ``scalar`` head the output projection has one row."""
        hidden, matrices = self.hidden_size, 3 if self.gated else 2
        layer = sum(i * o for i, o in self.linears().values()) + 2 * hidden
        if self.experts:
            layer += self.experts * (matrices * hidden * self.ffn + hidden) + matrices * hidden * self.shared_ffn
        if self.attention_bias:
            layer += self.query_width + 2 * self.key_width
        if self.linear_bias:
            layer += hidden + self.ffn * (matrices - 1) + hidden + 2 * hidden
        if self.qk_norm:
            layer += 2 * self.head_dim
        output = hidden if head == "scalar" else 0 if self.tie_embeddings else self.vocab_size * hidden
        return ParameterCount(
            embedding=(self.vocab_size + self.positions) * hidden,
            layer=layer,
            layers=self.layers,
            norm=hidden * (2 if self.linear_bias else 1),
            head=output,
        )


@dataclass(frozen=True)
class JobRole:
    """A model of the job; ``shape`` is None where it is not known before the run, and ``unknown`` says why."""

    role: Role
    shape: ModelShape | None
    unknown: str = ""


@dataclass(frozen=True)
class BackendJob:
    """Facts about a stage before anything starts.

    Attributes:
        algorithm: its name.
        roles: its models; at least one is trainable.
        gpus: GPUs per machine for training; 0 trains on CPU.
        nodes: machines.
        max_length: longest sequence in tokens.
        input: what a step trains on, as in :class:`rl_core.contracts.algorithm.BatchPlan`; None where unknown.
        tokens_per_step: most tokens of one optimizer step over all ranks; None where unknown.
        gpu_memory_bytes: of the smallest GPU of this machine; None without one, or where the run goes elsewhere.
        host_memory_bytes: of this machine, within its container's limit; None where the run goes elsewhere.
        adapter: trained in place of the models' own weights.
        given: the fields of the section ``backend`` besides ``name``; they win over what a backend proposes.
        notes: what had to be assumed.
    """

    algorithm: str
    roles: tuple[JobRole, ...]
    gpus: int
    nodes: int
    max_length: int
    input: AlgorithmInput | None = None
    tokens_per_step: int | None = None
    gpu_memory_bytes: int | None = None
    host_memory_bytes: int | None = None
    adapter: AdapterSpec | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> ModelShape | None:
        """Of the first trainable role."""
        return next((r.shape for r in self.roles if r.role.trainable), None)

    @property
    def total_gpus(self) -> int:
        """GPUs of all machines."""
        return self.gpus * self.nodes

    @property
    def unknown(self) -> str:
        """Why memory cannot be estimated; empty where every shape is known."""
        return next((r.unknown or "its size is unknown" for r in self.roles if r.shape is None), "")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank, on the device it trains on, at each group's own largest moment of a training step.

    Attributes:
        parameters: weights of all roles, and the copies that sharding gathers of them.
        gradients: of the role that is trained at the moment, and the buffers that reduce them.
        optimizer: states of all trainable roles.
        activations: kept for the backward pass of one micro-batch, and its temporary tensors.
        logits: everything as wide as the vocabulary, of one chunk of tokens.
        peak: the most that exists at once: not more than the sum of the groups, which are not all at their
            largest at the same time.
        advice: what to change in the backend's section to need less; empty where nothing is left.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    peak: int
    advice: str = ""

    @property
    def lasting(self) -> int:
        """The part that does not depend on the size of a micro-batch."""
        return self.parameters + self.gradients + self.optimizer


@dataclass(frozen=True)
class BackendRating:
    """A backend's rating of a job.

    Attributes:
        name: a backend that the same package registers.
        score: 0 (cannot run the job) to 100. As a guide: 80 for a job the backend is made for, 50 for one that it
            runs as well as any other, 20 where another is better.
        reasons: why, most important first; one short clause each.
        memory: with ``config`` and the job's ``given`` fields; None where unknown.
        config: fields of its section that it proposes, e.g. ``{"parallel": {"tp": 2}}``. They may change speed and
            memory, not results.
    """

    name: str
    score: int
    reasons: tuple[str, ...] = ()
    memory: MemoryEstimate | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 100:
            raise ValueError(f"rating of backend {self.name!r}: score must be 0 to 100, got {self.score}")
        if not self.score and not self.reasons:
            raise ValueError(f"rating of backend {self.name!r}: a score of 0 needs a reason")
