"""One pipeline stage of a model, ending in hidden states instead of logits.

Log-probs are computed from hidden states and the output embedding in chunks, by the loss function, so
that the logits of a whole micro-batch never exist.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from rl_core.contracts.model import Head
from torch import Tensor, nn

from rl_backend_megatron.architecture import Architecture
from rl_backend_megatron.modules import Rotary, block_spec
from rl_backend_megatron.runtime import Runtime


class ScalarHead(nn.Module):
    """One number per position: ``weight`` [1, H], the same on all tensor-parallel ranks."""

    def __init__(self, hidden: int, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden, dtype=dtype, device=device))


class StageModel(GPTModel):
    """The layers of this pipeline stage; on the last one it returns hidden states float [B, L, H].

    Attributes:
        head: ``lm`` (the output embedding is split over tensor-parallel ranks) or ``scalar``.
    """

    def __init__(
        self, config: TransformerConfig, architecture: Architecture, runtime: Runtime, *, head: Head, max_length: int
    ) -> None:
        super().__init__(
            config,
            block_spec(config, architecture.layers // runtime.pp_size),
            vocab_size=architecture.padded_vocab,
            max_sequence_length=max_length,
            pre_process=runtime.is_first_stage,
            post_process=runtime.is_last_stage,
            share_embeddings_and_output_weights=architecture.tied and head == "lm",
            position_embedding_type="rope",
            pg_collection=runtime.groups,
        )
        self.head = head
        self._padding = architecture.padding
        if self.pre_process and self._padding is not None:
            self.embedding.register_forward_hook(self._without_padding_gradient, with_kwargs=True)
        self.rotary_pos_emb = Rotary(
            architecture.rotary_frequencies().to(runtime.device),
            head_dim=architecture.head_dim,
            cp_group=runtime.groups.cp,
        )
        if head == "scalar" and self.post_process:
            self.output_layer = ScalarHead(architecture.hidden, dtype=config.params_dtype, device=runtime.device)

    def _postprocess(self, hidden_states: Tensor, *_others: Any, **_named: Any) -> Tensor:
        """GPTModel's hook after the last layer; logits are left to the loss."""
        if not self.post_process:
            return hidden_states
        if self.config.sequence_parallel:
            # Every rank sends back the whole gradient: heads add up what a split vocabulary leaves in parts.
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=False, group=self.pg_collection.tp
            )
        return hidden_states.transpose(0, 1)

    def _without_padding_gradient(
        self, _module: nn.Module, _args: tuple, given: dict[str, Any], output: Tensor
    ) -> Tensor:
        """[L, B, H]: the padding token's embedding gets no gradient as an input, as in transformers."""
        padding = (given["input_ids"] == self._padding).transpose(0, 1)
        if self.config.sequence_parallel:
            group = self.pg_collection.tp
            padding = padding.chunk(group.size())[group.rank()]
        # Stages send contiguous tensors only.
        return torch.where(padding[..., None], output.detach(), output).contiguous()

    def head_weight(self) -> Tensor:
        """[padded vocabulary / tp, H] or [1, H]; last stage only."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight
