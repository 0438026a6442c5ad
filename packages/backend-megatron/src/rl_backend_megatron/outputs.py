"""From a stage's hidden states to what losses see."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
import torch.nn.functional as F
from rl_torch.logprobs import token_outputs
from rl_torch.losses import TokenOutputs
from rl_torch.microbatch import MicroBatch
from rl_torch.policy import in_batch_order, score_indices
from rl_torch.vocab_parallel import VocabShard
from torch import Tensor
from transformers import PretrainedConfig

from rl_backend_megatron.model import StageModel


@dataclass(frozen=True)
class OutputHead:
    """Computes per-token outputs on the last pipeline stage.

    Attributes:
        config: of the transformers model; scores skip its padding token.
        vocab: tokens of the model, without padding.
        chunk_tokens: see :func:`rl_torch.logprobs.token_outputs`.
    """

    stage: StageModel
    config: PretrainedConfig
    vocab: int
    chunk_tokens: int | None = None

    def __call__(
        self, micro: MicroBatch, hidden: Tensor, outputs: tuple[str, ...], *, temperature: float
    ) -> TokenOutputs:
        """Outputs in batch order, free of padding.

        Args:
            hidden: [R, L, H], as the last stage returns it.
        """
        states = hidden.flatten(0, 1)
        if self.stage.head == "lm":
            results = self._language(micro, states, outputs, temperature)
        else:
            results = self._scalar(micro, states, outputs)
        return in_batch_order(results, micro)

    def _language(
        self, micro: MicroBatch, states: Tensor, outputs: tuple[str, ...], temperature: float
    ) -> dict[str, Tensor]:
        weight, shard = vocab_part(self.stage.head_weight(), self.vocab, group=self.stage.pg_collection.tp)
        return token_outputs(
            states.index_select(0, micro.predictors).to(weight.dtype),
            weight,
            micro.targets,
            outputs=outputs,
            temperature=temperature,
            chunk_tokens=self.chunk_tokens,
            shard=shard,
        )

    def _scalar(self, micro: MicroBatch, states: Tensor, outputs: tuple[str, ...]) -> dict[str, Tensor]:
        where = {"values": micro.predictors, "scores": score_indices(self.config, "scalar", micro)}
        weight = self.stage.head_weight().float()
        return {name: F.linear(states.index_select(0, where[name]).float(), weight).squeeze(-1) for name in outputs}


def vocab_part(weight: Tensor, vocab: int, *, group: dist.ProcessGroup) -> tuple[Tensor, VocabShard | None]:
    """This rank's rows of the output embedding without padding, and which they are; None where it holds all."""
    rows = weight.shape[0]
    start = group.rank() * rows
    count = max(0, min(vocab - start, rows))
    own = weight if count == rows else weight[:count]
    return own, VocabShard(group, start, vocab) if group.size() > 1 else None
