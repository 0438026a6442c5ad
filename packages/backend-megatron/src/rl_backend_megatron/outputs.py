"""From a stage's hidden states to what losses see."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from rl_torch.losses import TokenOutputs
from rl_torch.microbatch import MicroBatch
from rl_torch.policy import OUTPUTS
from torch import Tensor

from rl_backend_megatron.model import StageModel
from rl_backend_megatron.vocab_parallel import VocabShard, token_outputs


@dataclass(frozen=True)
class OutputHead:
    """Computes per-token outputs on the last pipeline stage.

    Attributes:
        vocab: tokens of the model, without padding.
        pad: the padding token of a scalar model's config, which its scores skip.
        chunk_tokens: see :func:`rl_backend_megatron.vocab_parallel.token_outputs`.
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
        cells = hidden.flatten(0, 1)
        if self.stage.head == "lm":
            results = self._language(micro, cells, outputs, temperature)
        else:
            results = self._scalar(micro, cells, outputs)
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
        self, micro: MicroBatch, cells: Tensor, outputs: tuple[str, ...], temperature: float
    ) -> dict[str, Tensor]:
        weight = self.stage.head_weight()
        group = self.stage.pg_collection.tp
        hidden = cells.index_select(0, micro.predictors).to(weight.dtype)
        if not self.stage.config.sequence_parallel:
            # Adds the ranks' parts of the gradient up. It must see a contiguous one, or Megatron adds up a copy.
            hidden = copy_to_tensor_model_parallel_region(hidden, group=group)
        return token_outputs(
            hidden,
            weight,
            micro.targets,
            vocab=VocabShard.of(size=self.vocab, rows=weight.shape[0], group=group),
            outputs=outputs,
            temperature=temperature,
            chunk_tokens=self.chunk_tokens,
        )

    def _scalar(self, micro: MicroBatch, cells: Tensor, outputs: tuple[str, ...]) -> dict[str, Tensor]:
        where = {"values": micro.predictors, "scores": last_unpadded(micro, self.pad)}
        weight = self.stage.head_weight().float()
        return {name: F.linear(cells.index_select(0, where[name]).float(), weight).squeeze(-1) for name in outputs}


def last_unpadded(micro: MicroBatch, pad: int | None) -> Tensor:
    """[B]: each sequence's last cell that does not hold ``pad``, as in transformers; its first if all of them do."""
    if pad is None:
        return micro.last
    rows, width = micro.input_ids.shape
    columns = micro.last.new_tensor(range(width)).expand(rows, width)
    inside = columns <= (micro.last % width)[:, None]
    unpadded = columns.where(inside & (micro.input_ids != pad), 0)
    return micro.last - micro.last % width + unpadded.max(1).values
