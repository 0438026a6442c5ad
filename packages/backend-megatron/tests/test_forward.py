"""Forward passes: equal to plain transformers, in the caller's order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from megatron_helpers import forward
from ranks import Ranks
from rl_backend_megatron.outputs import vocab_part
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import ModelSpec, Role
from rl_torch.engine.testing.examples import model_folder, model_spec, plain_outputs, random_batch
from rl_torch.engine.testing.jobs import merged

NAMES = ("logprobs", "entropy", "mean_logprobs", "logsumexp")


@pytest.mark.parametrize(
    ("world", "parallel", "architecture"),
    [
        (1, {}, "llama"),
        (2, {"tp": 2}, "qwen2"),
        (2, {"tp": 2, "sequence": True}, "qwen3"),
        (2, {"pp": 2}, "qwen3"),
        (2, {"dp": 2}, "qwen2"),
        (4, {"tp": 2, "pp": 2}, "qwen2"),
    ],
)
def test_outputs_equal_the_plain_model(
    ranks: Ranks, tmp_path: Path, world: int, parallel: dict, architecture: str
) -> None:
    batch, spec = random_batch(15), model_folder(tmp_path, architecture=architecture)
    config = {"parallel": parallel, "max_tokens_per_microbatch": 90}
    answers = ranks(forward, world, batch=batch, spec=spec, config=config, outputs=NAMES, temperature=0.8)
    for name, values in plain_outputs(spec, batch, 0.8, NAMES).items():
        found = merged(batch, answers, name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, values, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("rank", "vocab", "start", "rows"),
    [(0, 96, 0, 64), (1, 96, 64, 32), (0, 60, 0, 60), (1, 60, 64, 0), (1, 128, 64, 64)],
)
def test_padding_rows_of_the_vocabulary_are_left_out(rank: int, vocab: int, start: int, rows: int) -> None:
    class Group:
        """What is asked of a process group here."""

        rank, size = (lambda _: rank), (lambda _: 2)

    own, shard = vocab_part(torch.zeros(64, 8), vocab, group=Group())
    assert (shard.start, shard.total, own.shape) == (start, vocab, (rows, 8))


@pytest.mark.parametrize("packing", ["padded", "packed"])
def test_scores_skip_padding_tokens_like_transformers(ranks: Ranks, tmp_path: Path, packing: str) -> None:
    role, batch = Role("reward", trainable=False, head="scalar"), random_batch(6)
    spec = model_spec()
    init = ModelSpec(init=spec.init, vocab_size=96, max_length=128, special_tokens={"pad_token_id": 7})
    tokens = batch.tokens.copy()
    tokens[batch.offsets[1:] - 1] = 7  # every sequence ends with the padding token
    tokens[batch.sequence(2)] = 7  # and one is nothing else
    batch = SequenceBatch(tokens, batch.offsets, batch.token_columns, batch.sequence_columns)
    folder = _scored_folder(init, tmp_path)
    answers = ranks(
        forward,
        2,
        batch=batch,
        role=role,
        spec=folder,
        outputs=("scores",),
        config={"parallel": {"tp": 2}, "packing": packing},
    )
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder.path).eval()
    for i in range(len(batch)):
        ids = torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64))[None]
        expected = 0.0
        if i != 2:
            with torch.no_grad():
                expected = model(input_ids=ids).logits.item()
            assert merged(batch, answers, "scores")[i] == pytest.approx(expected, abs=1e-5)


def _scored_folder(spec: ModelSpec, directory: Path) -> ModelSpec:
    """A reward model whose head is not zero."""
    from rl_torch.models import build_model

    model = build_model(spec, dtype=torch.float32, head="scalar")
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(directory)
    return ModelSpec(path=str(directory), max_length=128)
