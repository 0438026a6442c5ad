"""Parts of a transformer that run on any device, and the layer specs that put them in."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt.gpt_layer_specs import HAVE_TE, get_gpt_layer_local_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class SdpaAttention(MegatronModule):
    """Causal attention through PyTorch's fused kernels, one sequence per column or all of them in one."""

    def __init__(self, config: TransformerConfig, *, softmax_scale: float | None = None, **_others: Any) -> None:
        super().__init__(config=config)
        self._scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        **_others: Any,
    ) -> Tensor:
        """[L, B, heads, dim] → [L, B, heads · dim]; packed: [T, heads, dim] → [T, heads · dim], by sequence.

        Keys and values may have fewer heads.
        """
        if packed_seq_params is None:
            return self._causal(query, key, value)
        bounds = packed_seq_params.cu_seqlens_q
        lengths = (bounds[1:] - bounds[:-1]).tolist()
        parts = zip(*(x.unsqueeze(1).split(lengths) for x in (query, key, value)), strict=True)
        return torch.cat([self._causal(*part) for part in parts]).squeeze(1)

    def _causal(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self._scale, enable_gqa=grouped)
        return out.permute(2, 0, 1, 3).reshape(*query.shape[:2], -1)


class RmsNorm(torch.nn.Module):
    """Root-mean-square norm in float32, as transformers computes it; tells Megatron about sequence parallelism."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **_others: Any) -> None:
        super().__init__()
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        # Every rank sees other positions then, and the gradients are added up.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] → [..., H]."""
        wide = x.float()
        normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._eps)
        return self.weight * normal.to(x.dtype)


class Rotary(RotaryEmbedding):
    """Rotary angles for given frequencies, on the frequencies' own device."""

    def __init__(self, frequencies: Tensor, *, head_dim: int, cp_group: Any) -> None:
        super().__init__(kv_channels=head_dim, rotary_percent=1.0, use_cpu_initialization=True, cp_group=cp_group)
        self.inv_freq = frequencies

    def get_emb(self, max_seq_len: int, offset: int = 0) -> Tensor:
        """float32 [max_seq_len, 1, 1, head_dim]."""
        angles = self.get_freqs_non_repeated(max_seq_len, offset)
        return torch.cat((angles, angles), dim=-1)[:, None, None, :]


def has_packed_kernels(device: torch.device) -> bool:
    """Whether attention on ``device`` takes packed sequences in one kernel: CUDA with Transformer Engine."""
    return device.type == "cuda" and HAVE_TE


def core_attention(*, on_cpu: bool) -> type:
    """Transformer Engine's attention where it is installed and there is CUDA; else :class:`SdpaAttention`."""
    if on_cpu or not HAVE_TE:
        return SdpaAttention
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    return TEDotProductAttention


def block_spec(config: TransformerConfig, layers: int) -> TransformerBlockSubmodules:
    """``layers`` decoder layers and the norm after them.

    Linear layers are Megatron's own also where Transformer Engine is installed, because it fuses norms into them.
    """
    if config.num_moe_experts and not hasattr(moe_utils, "te_general_gemm"):
        # The library asks whether this is None, but only defines it together with Transformer Engine.
        moe_utils.te_general_gemm = None
    layer = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts, normalization="RMSNorm", qk_layernorm=config.qk_layernorm
    )
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RmsNorm
    attention = parts.self_attention.submodules
    attention.core_attention = core_attention(on_cpu=config.use_cpu_initialization)
    attention.q_layernorm = attention.k_layernorm = RmsNorm if config.qk_layernorm else IdentityOp
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=RmsNorm)
