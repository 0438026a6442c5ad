"""From a Hugging Face config to Megatron's: sizes, biases, norms, rotary frequencies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from rl_core.errors import ConfigError, EnvironmentProblem
from rl_torch.routing import balancing_of
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rl_backend_megatron.parallelism import ARCHITECTURES, ParallelConfig, Shape, division_problems, padded_vocabulary


@dataclass(frozen=True)
class Architecture:
    """Parts of a decoder.

    Attributes:
        config: the Hugging Face config it came from, which exports write again.
        head_dim: of one attention head; heads · head_dim need not be the hidden size.
        vocab, padded_vocab: tokens, and rows of the embedding that are stored.
        qkv_bias: whether queries, keys and values have biases (Qwen2).
        qk_norm: whether each head's queries and keys are normalised (Qwen3).
        tied: whether input and output embedding are one.
        experts: feed-forward parts of a layer that tokens choose from; 0 for a dense model.
        experts_per_token: how many a token chooses, each ``expert_ffn`` wide.
        sum_to_one: the weights of a token's experts are made to sum to 1.
        padding: the token whose row of the input embedding is not trained; None for all to be.
    """

    config: PretrainedConfig
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    padded_vocab: int
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    tied: bool
    padding: int | None
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    sum_to_one: bool = True

    @classmethod
    def of(cls, config: PretrainedConfig, parallel: ParallelConfig) -> Architecture:
        """Read ``config``.

        Raises:
            EnvironmentProblem: something in it has no counterpart here.
            ConfigError: ``parallel`` does not divide it.
        """
        _check(config)
        shape = Shape.of_config(config.to_dict(), source=f"the {config.model_type} model")
        problems = list(division_problems(parallel, shape))
        if problems:
            raise ConfigError("\n".join(str(p) for p in problems))
        return cls(
            config=config,
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            ffn=config.intermediate_size,
            vocab=config.vocab_size,
            padded_vocab=padded_vocabulary(config.vocab_size, parallel.tp),
            norm_eps=config.rms_norm_eps,
            qkv_bias=config.model_type == "qwen2",
            qk_norm=config.model_type in ("qwen3", "qwen3_moe"),
            tied=bool(config.tie_word_embeddings),
            padding=config.pad_token_id,
            experts=shape.experts,
            experts_per_token=getattr(config, "num_experts_per_tok", 0),
            expert_ffn=getattr(config, "moe_intermediate_size", 0),
            sum_to_one=getattr(config, "norm_topk_prob", True),
        )

    def transformer_config(
        self,
        parallel: ParallelConfig,
        *,
        precision: Literal["fp32", "bf16"],
        on_cpu: bool,
        activation_checkpointing: bool = False,
    ) -> TransformerConfig:
        """Megatron's config: no dropout, losses that are sums already, sequences of any length."""
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return TransformerConfig(
            num_layers=self.layers,
            hidden_size=self.hidden,
            num_attention_heads=self.heads,
            num_query_groups=self.kv_heads,
            kv_channels=self.head_dim,
            ffn_hidden_size=self.ffn,
            normalization="RMSNorm",
            layernorm_epsilon=self.norm_eps,
            gated_linear_unit=True,
            activation_func=F.silu,
            add_bias_linear=False,
            add_qkv_bias=self.qkv_bias,
            qk_layernorm=self.qk_norm,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            # Weights come from the Hugging Face model; this only skips drawing values that are overwritten.
            init_method=_leave,
            output_layer_init_method=_leave,
            use_cpu_initialization=on_cpu,
            params_dtype=dtype,
            pipeline_dtype=dtype,
            bf16=precision == "bf16",
            attention_softmax_in_fp32=True,
            apply_rope_fusion=False,
            bias_activation_fusion=False,
            bias_dropout_fusion=False,
            masked_softmax_fusion=False,
            gradient_accumulation_fusion=False,
            persist_layer_norm=False,
            tensor_model_parallel_size=parallel.tp,
            pipeline_model_parallel_size=parallel.pp,
            sequence_parallel=parallel.sequence and parallel.tp > 1,
            recompute_granularity="full" if activation_checkpointing else None,
            recompute_method="uniform" if activation_checkpointing else None,
            recompute_num_layers=1 if activation_checkpointing else None,
            # Losses are divided by global counts, so gradients are added up and divided by nothing.
            calculate_per_token_loss=True,
            variable_seq_lengths=True,
            # The library refuses variable lengths with its default dispatcher, even without experts.
            moe_token_dispatcher_type="alltoall",
            **self._expert_config(parallel),
        )

    def _expert_config(self, parallel: ParallelConfig) -> dict[str, Any]:
        """Every token reaches its experts; no loss of the library's own balances them."""
        if not self.experts:
            return {}
        return {
            "num_moe_experts": self.experts,
            "moe_ffn_hidden_size": self.expert_ffn,
            "moe_router_topk": self.experts_per_token,
            "moe_router_pre_softmax": not self.sum_to_one,
            "moe_router_load_balancing_type": "none",
            "moe_aux_loss_coeff": 0.0,
            "expert_model_parallel_size": parallel.ep,
        }

    def rotary_frequencies(self) -> Tensor:
        """float32 [head_dim / 2]: radians per position of each pair of channels (Su et al. 2021)."""
        kind = self.config.rope_parameters["rope_type"]
        if kind != "default":
            return ROPE_INIT_FUNCTIONS[kind](self.config, torch.device("cpu"))[0]
        channels = torch.arange(0, self.head_dim, 2, dtype=torch.float32)
        return 1.0 / self.config.rope_parameters["rope_theta"] ** (channels / self.head_dim)


def _leave(tensor: Tensor) -> Tensor:
    return tensor


def _check(config: PretrainedConfig) -> None:
    """Refuse what would be computed differently."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise EnvironmentProblem(
            f"the megatron backend cannot build {kind!r} models\n"
            f"    choose one of {', '.join(ARCHITECTURES)}, or backend: {{name: fsdp2}}"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    rotary = rope.get("rope_type", "default")
    odd = {
        "attention_bias": getattr(config, "attention_bias", False),
        "mlp_bias": getattr(config, "mlp_bias", False),
        "use_sliding_window": getattr(config, "use_sliding_window", False),
        f"hidden_act {config.hidden_act}": config.hidden_act != "silu",
        f"rope_type {rotary}": rotary not in ("default", "linear", "llama3"),
        "mlp_only_layers": bool(getattr(config, "mlp_only_layers", None)),
        "decoder_sparse_step": getattr(config, "decoder_sparse_step", 1) != 1,
        "output_router_logits": balancing_of(config) is not None,
        "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0) != 1.0,
    }
    found = [name for name, present in odd.items() if present]
    if found:
        raise EnvironmentProblem(
            f"the megatron backend has no counterpart for {', '.join(found)} of this {kind} model\n"
            "    use backend: {name: fsdp2}"
        )
