"""Inputs of the KTO loss: labelled completions, and the KL baseline (Ethayarajh et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rl_algo_common.encoding import RowEncoder
from rl_core.batch import SequenceBatch
from rl_core.errors import DataError

from rl_algo_dpo.reference import completion_logprobs

if TYPE_CHECKING:
    from rl_core.contracts.model_handle import ModelHandle
    from rl_core.contracts.tokenizer import Tokenizer


def encode_labelled(rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *, encoder: RowEncoder) -> SequenceBatch:
    """Rows with ``prompt``, ``completion`` and ``label``, or with ``prompt``, ``chosen`` and ``rejected``.

    A pair becomes two independent sequences.

    Returns:
        token column ``loss_mask``; sequence column ``desirable`` (bool).

    Raises:
        DataError: a row is neither, its label is not a truth value, or it cannot be encoded.
    """
    parts: list[SequenceBatch] = []
    desirable: list[bool] = []
    for index, row in enumerate(rows):
        placed = {**row, "__where__": str(row.get("__where__", f"row {index} of the batch"))}
        if row.get("label") is not None:
            part = encoder.examples([placed], tokenizer)
            label = _label(placed)
            desirable += [label] * len(part)
        else:
            _check_pair(placed)
            pair = encoder.pairs([placed], tokenizer)
            part = SequenceBatch(pair.tokens, pair.offsets, pair.token_columns)
            desirable += pair.sequence_columns["chosen"].tolist()
        parts.append(part)
    joined = SequenceBatch.concat(parts)
    return joined.with_columns(sequence={"desirable": np.array(desirable, bool)})


def kl_baseline(batch: SequenceBatch, models: Mapping[str, ModelHandle], beta: float) -> float:
    """``z = β · max(0, mean h)``, h = log π - log π_ref of prompts with completions of other prompts.

    A constant of the step: it has no gradient. 0 where all sequences have the same prompt.
    """
    strangers = mismatched(batch)
    if not len(strangers):
        return 0.0
    policy = completion_logprobs(strangers, models["policy"]).astype(np.float64)
    reference = completion_logprobs(strangers, models["reference"])
    return beta * max(0.0, float((policy - reference).mean()))


def mismatched(batch: SequenceBatch) -> SequenceBatch:
    """Each prompt with the completion that follows it in the batch, desirable ones before the others.

    In that order the two completions of a pair, which have one prompt, are not neighbours. Joins of equal
    prompts are left out, and none is longer than the longest sequence of the batch: its end is cut off.

    Args:
        batch: token column ``loss_mask``; sequence column ``desirable``.

    Returns:
        at most B sequences with ``loss_mask`` on the completions.
    """
    mask = batch.token_columns["loss_mask"]
    spans = [batch.sequence(index) for index in range(len(batch))]
    starts = [span.start + int(np.flatnonzero(mask[span])[0]) for span in spans]
    prompts = [batch.tokens[span.start : start] for span, start in zip(spans, starts, strict=True)]
    longest = int(batch.lengths.max(initial=0))
    order = np.argsort(~batch.sequence_columns["desirable"], kind="stable")
    tokens, masks = [], []
    for i, j in zip(order, np.roll(order, -1), strict=True):
        if np.array_equal(prompts[i], prompts[j]):
            continue
        completion = slice(starts[j], spans[j].stop)
        tokens.append(np.concatenate([prompts[i], batch.tokens[completion]])[:longest])
        masks.append(np.concatenate([np.zeros(len(prompts[i]), np.float32), mask[completion]])[:longest])
    return SequenceBatch.from_lists(tokens, token_columns={"loss_mask": masks})


def _label(row: Mapping[str, Any]) -> bool:
    label = row["label"]
    if isinstance(label, bool | np.bool_) or (isinstance(label, int) and label in (0, 1)):
        return bool(label)
    raise DataError(f"{row['__where__']}: the label must be true (desirable) or false, found {label!r}")


def _check_pair(row: Mapping[str, Any]) -> None:
    if row.get("chosen") is None and row.get("rejected") is None:
        columns = ", ".join(name for name in row if not name.startswith("__"))
        raise DataError(
            f"{row['__where__']}: kto needs a completion with a label (true: desirable), or a chosen and a rejected "
            f"completion (columns: {columns})\n"
            "    put the truth value into a column called label, or map chosen and rejected in the data section"
        )
