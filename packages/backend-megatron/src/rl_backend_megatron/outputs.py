"""From a stage's hidden states to what losses see."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
import torch.nn.functional as F
from rl_torch.logprobs import token_outputs
from rl_torch.losses import TokenOutputs
from rl_torch.microbatch import MicroBatch
from rl_torch.policy import OUTPUTS
from rl_torch.vocab_parallel import VocabShard
from torch import Tensor

from rl_backend_megatron.model import StageModel


@dataclass(frozen=True)
class OutputHead:
    """Computes per-token outputs on the last pipeline stage.

    Attributes:
        vocab: tokens of the model, without padding.
        pad: the padding token of a scalar model's config, which its scores skip.
        chunk_tokens: see :func:`rl_torch.logprobs.token_outputs`.
    """

    stage: StageModel
    vocab: int
    pad: int | None = None
    chunk_tokens: int | None = None

    def check(self, outputs: tuple[str, ...]) -> None:
        """Refuse what the head cannot compute.

        Raises:
            ValueError: names the first such output.
        """
        possible = OUTPUTS[self.stage.head]
        odd = [name for name in outputs if name not in possible]
        if odd:
            listed = f"{', '.join(possible[:-1])} and {possible[-1]}"
            raise ValueError(f"a model with a {self.stage.head!r} head computes {listed}, not {odd[0]!r}")

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
        per_token = {
            name: values.new_zeros(len(micro.batch.tokens)).index_copy(0, micro.scored, values)
            for name, values in results.items()
            if name != "scores"
        }
        return TokenOutputs(
            logprobs=per_token.get("logprobs"),
            entropy=per_token.get("entropy"),
            values=per_token.get("values"),
            scores=results.get("scores"),
            sequence_ids=micro.sequence_ids,
            num_sequences=len(micro.batch),
            mean_logprobs=per_token.get("mean_logprobs"),
            logsumexp=per_token.get("logsumexp"),
        )

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
        where = {"values": micro.predictors, "scores": last_unpadded(micro, self.pad)}
        weight = self.stage.head_weight().float()
        return {name: F.linear(states.index_select(0, where[name]).float(), weight).squeeze(-1) for name in outputs}


def vocab_part(weight: Tensor, vocab: int, *, group: dist.ProcessGroup) -> tuple[Tensor, VocabShard | None]:
    """This rank's rows of the output embedding without padding, and which they are; None where it holds all."""
    rows = weight.shape[0]
    start = group.rank() * rows
    count = max(0, min(vocab - start, rows))
    own = weight if count == rows else weight[:count]
    return own, VocabShard(group, start, vocab) if group.size() > 1 else None


def last_unpadded(micro: MicroBatch, pad: int | None) -> Tensor:
    """[B]: each sequence's last position without ``pad``, as in transformers; its first if all are ``pad``."""
    if pad is None:
        return micro.last
    rows, width = micro.input_ids.shape
    columns = micro.last.new_tensor(range(width)).expand(rows, width)
    inside = columns <= (micro.last % width)[:, None]
    unpadded = columns.where(inside & (micro.input_ids != pad), 0)
    return micro.last - micro.last % width + unpadded.max(1).values
