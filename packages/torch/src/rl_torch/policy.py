"""Models as the losses see them: hidden states go in at one end, per-token numbers come out.

The projection to log-probs happens inside ``forward``, because that is where FSDP has the output
embedding in one piece.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from rl_core.contracts.model import Head
from rl_core.errors import EnvironmentProblem
from torch import Tensor, nn
from transformers import PreTrainedModel

from rl_torch.llama.distinct import Distinct
from rl_torch.logprobs import token_outputs
from rl_torch.losses import TokenOutputs
from rl_torch.microbatch import MicroBatch
from rl_torch.small_integers import distinct
from rl_torch.vocab_parallel import VocabShard

OUTPUTS: dict[Head, tuple[str, ...]] = {
    "lm": ("logprobs", "entropy", "mean_logprobs", "logsumexp"),
    "scalar": ("values", "scores"),
}
"""What each head can compute."""

_FEW = 0.9
"""Of all cells; where more are wanted, leaving out the others costs as much as it saves."""


class PolicyModel(nn.Module):
    """A causal language model that answers with token log-probs and entropies.

    Args:
        model: as from :func:`rl_torch.models.build_model`; its parameter names stay the Hugging Face ones.
        chunk_tokens: see :func:`rl_torch.logprobs.token_outputs`.
    """

    head: Head = "lm"

    def __init__(self, model: PreTrainedModel, *, chunk_tokens: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.chunk_tokens = chunk_tokens
        self.has_own_layers = False
        """Whether :func:`rl_torch.llama.layers.use_own_layers` was called with ``model``."""
        self.vocab_shard: VocabShard | None = None
        """Set by tensor parallelism, where the output embedding is a DTensor split by rows."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        *,
        predictors: Tensor,
        targets: Tensor,
        last: Tensor,
        outputs: tuple[str, ...],
        temperature: float,
        **attention: Any,
    ) -> dict[str, Tensor]:
        """``outputs``, float32 [N] each; :class:`~rl_torch.microbatch.MicroBatch` has the arguments.

        ``attention`` is passed on to the attention functions of the model's layers.
        """
        hidden = _hidden_at(self, predictors, input_ids, position_ids, **attention)
        embedding = self.model.get_output_embeddings()
        weight = embedding.weight if self.vocab_shard is None else embedding.weight.to_local()
        return token_outputs(
            hidden,
            weight,
            targets,
            outputs=outputs,
            bias=getattr(embedding, "bias", None),
            temperature=temperature,
            chunk_tokens=self.chunk_tokens,
            shard=self.vocab_shard,
        )


class ScalarModel(nn.Module):
    """A transformer with one linear output ``score``: values per token, or one score per sequence.

    Args:
        model: a sequence-classification model with one label, as from
            ``build_model(spec, head="scalar")``.
    """

    head: Head = "scalar"

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.has_own_layers = False

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        *,
        predictors: Tensor,
        targets: Tensor,
        last: Tensor,
        outputs: tuple[str, ...],
        temperature: float,
        **attention: Any,
    ) -> dict[str, Tensor]:
        """``values`` float32 [N] at ``predictors`` and ``scores`` float32 [B] at ``last``."""
        cells = {"values": predictors, "scores": last}
        asked = [cells[name] for name in outputs]
        hidden = _hidden_at(self, torch.cat(asked), input_ids, position_ids, **attention)
        weight = self.model.score.weight.float()
        values = nn.functional.linear(hidden.float(), weight).squeeze(-1)
        # Cloned, because FSDP's hooks cannot follow in-place changes of a view.
        return {n: part.clone() for n, part in zip(outputs, values.split([len(x) for x in asked]), strict=True)}


def wrap_model(model: PreTrainedModel, head: Head, *, chunk_tokens: int | None = None) -> PolicyModel | ScalarModel:
    """The wrapper for a model with this head."""
    return PolicyModel(model, chunk_tokens=chunk_tokens) if head == "lm" else ScalarModel(model)


def compute_outputs(
    model: PolicyModel | ScalarModel,
    micro: MicroBatch,
    outputs: tuple[str, ...],
    *,
    temperature: float = 1.0,
    **attention: Any,
) -> TokenOutputs:
    """One forward pass; the results go back to batch order, free of padding.

    ``attention`` goes to the attention functions of the model's layers.

    Raises:
        ValueError: the model's head cannot compute one of ``outputs``.
    """
    check_outputs(model, outputs)
    results = model(
        micro.input_ids,
        micro.position_ids,
        predictors=micro.predictors,
        targets=micro.targets,
        last=score_cells(model, micro),
        outputs=tuple(outputs),
        temperature=temperature,
        **attention,
    )
    return in_batch_order(results, micro)


def check_outputs(model: PolicyModel | ScalarModel, outputs: tuple[str, ...]) -> None:
    """Refuse what the model's head cannot compute.

    Raises:
        ValueError: names the first such output.
    """
    possible = OUTPUTS[model.head]
    odd = [name for name in outputs if name not in possible]
    if odd:
        listed = f"{', '.join(possible[:-1])} and {possible[-1]}"
        raise ValueError(f"a model with a {model.head!r} head computes {listed}, not {odd[0]!r}")


def score_cells(model: PolicyModel | ScalarModel, micro: MicroBatch) -> Tensor:
    """int64 [B]: the cell at which each sequence's score stands.

    That is its last token that is not the config's padding token, as in transformers, which cannot tell an end
    token that is also the padding token from padding.
    """
    pad = model.model.config.pad_token_id
    return micro.last if model.head == "lm" or pad is None else _last_unpadded(micro, pad)


def in_batch_order(results: dict[str, Tensor], micro: MicroBatch) -> TokenOutputs:
    """What a forward pass gave at ``micro``'s cells ([N] or [B] per name), as the losses see it."""

    def per_token(name: str) -> Tensor | None:
        if name not in results:
            return None
        values = results[name]
        return values.new_zeros(len(micro.batch.tokens)).index_copy(0, micro.scored, values)

    return TokenOutputs(
        logprobs=per_token("logprobs"),
        entropy=per_token("entropy"),
        values=per_token("values"),
        scores=results.get("scores"),
        sequence_ids=micro.sequence_ids,
        num_sequences=len(micro.batch),
        mean_logprobs=per_token("mean_logprobs"),
        logsumexp=per_token("logsumexp"),
    )


@torch.no_grad()
def check_supported(model: PreTrainedModel, *, packed: bool = True) -> None:
    """Refuse an architecture whose logits are not ``hidden @ weight.T``, or that mixes packed sequences.

    Compares five tokens through the model's own forward with the ways used here; costs
    milliseconds to seconds. Call it before sharding.

    Raises:
        EnvironmentProblem: names the architecture and what does not hold.
    """
    body, name = model.base_model, type(model).__name__
    device = model.get_input_embeddings().weight.device
    ids = torch.arange(1, 6, device=device).remainder(model.config.vocab_size)[None]
    hidden = body(input_ids=ids, use_cache=False).last_hidden_state
    tolerance = 1e-3 * (1 + hidden.float().abs().max())
    if packed:
        twice = torch.cat([ids, ids], dim=1)
        positions = torch.arange(5, device=device).repeat(2)[None]
        states = body(input_ids=twice, position_ids=positions, use_cache=False).last_hidden_state
        if (states[:, 5:].float() - hidden.float()).abs().max() > tolerance:
            raise EnvironmentProblem(f"{name} does not keep packed sequences apart\n    set backend.packing: padded")
    embedding = model.get_output_embeddings()
    if embedding is None:
        return
    ours = torch.log_softmax(embedding(hidden).float(), dim=-1)
    theirs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits.float(), dim=-1)
    if _transforms_logits(model) or (ours - theirs).abs().max() > 1e-2:
        raise EnvironmentProblem(
            f"{name} transforms its logits (soft-capping or scaling), which log-probs here do not reproduce; "
            "choose another architecture"
        )


def _transforms_logits(model: PreTrainedModel) -> bool:
    """Whether the config says so; small logits of a new model would not show it."""
    fields = ("final_logit_softcapping", "logits_scaling", "logit_scale")
    return any(getattr(model.config, field, None) not in (None, 1, 1.0) for field in fields)


def _last_unpadded(micro: MicroBatch, pad: int) -> Tensor:
    """[B]: the cell of each sequence's last token that is not ``pad``; its first one's if all of them are."""
    batch = micro.batch
    unpadded = np.maximum.accumulate(np.where(batch.tokens != pad, np.arange(len(batch.tokens)), -1))
    tokens = np.maximum(unpadded[batch.offsets[1:] - 1], batch.offsets[:-1])
    return micro.cells[torch.from_numpy(tokens).to(micro.cells.device)]


def _hidden_at(
    wrapped: PolicyModel | ScalarModel,
    cells: Tensor,
    input_ids: Tensor,
    position_ids: Tensor | None,
    **attention: Any,
) -> Tensor:
    """[N, H]: the last hidden states of ``cells`` (int64 [N], of R · L)."""
    if wrapped.has_own_layers:
        attention = {**attention, "distinct": Distinct.of(input_ids)}
        first, places = map(torch.from_numpy, distinct(cells.numpy(), input_ids.numel()))
        if len(first) <= _FEW * input_ids.numel():
            attention, cells = {**attention, "wanted": cells[first]}, places
    states = wrapped.model.base_model(
        input_ids=input_ids, position_ids=position_ids, use_cache=False, **attention
    ).last_hidden_state
    return states.flatten(0, 1).index_select(0, cells)
