"""The model in this process, without Ray."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.reward import Sample
from rl_core.errors import EnvironmentProblem
from rl_reward_model.encoding import Encoder
from rl_reward_model.scorer import Scorer
from safetensors.torch import load_file, save_file
from transformers import Qwen2ForSequenceClassification


@pytest.fixture
def batch(config: Callable, samples: list[Sample]) -> SequenceBatch:
    return SequenceBatch.from_lists(Encoder(config()).encode(samples))


@pytest.mark.parametrize("batch_tokens", [1, 70, 130, 16384])
def test_scores_are_those_of_each_sample_alone_in_any_batch(
    batch_tokens: int, batch: SequenceBatch, config: Callable, samples: list[Sample], plain_scores: Callable
) -> None:
    scores = Scorer(config(batch_tokens=batch_tokens)).score(batch)
    expected = plain_scores(samples)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


def test_scores_do_not_depend_on_the_padding_token(
    batch: SequenceBatch, config: Callable, samples: list[Sample], plain_scores: Callable, folder: str, tmp_path: Path
) -> None:
    path = tmp_path / "other-pad"
    shutil.copytree(folder, path)
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": 9}))
    np.testing.assert_allclose(Scorer(config(path=str(path))).score(batch), plain_scores(samples), atol=1e-5)
    # With a padding token of its own, transformers' forward of one sample reads the score at the end token as well.
    model = Qwen2ForSequenceClassification.from_pretrained(path).eval()
    with torch.inference_mode():
        one = model(input_ids=torch.tensor(batch.tokens[batch.sequence(3)][None].astype(np.int64))).logits.item()
    assert one == pytest.approx(plain_scores(samples)[3], abs=1e-5)


def test_a_model_that_pads_with_its_end_token_scores_as_transformers_reads_it(
    batch: SequenceBatch, config: Callable, folder: str, tmp_path: Path
) -> None:
    path = tmp_path / "pad-is-end"
    shutil.copytree(folder, path)
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": 0}))
    model = Qwen2ForSequenceClassification.from_pretrained(path).eval()
    expected = []
    with torch.inference_mode():
        for i in range(len(batch)):
            ids = torch.tensor(batch.tokens[batch.sequence(i)][None].astype(np.int64))
            assert ids[0, -1] == model.config.pad_token_id
            expected.append(model(input_ids=ids).logits.item())
    np.testing.assert_allclose(Scorer(config(path=str(path))).score(batch), expected, atol=1e-5)


def test_a_model_in_bfloat16_still_scores_in_float32(
    batch: SequenceBatch, config: Callable, samples: list[Sample], plain_scores: Callable
) -> None:
    scores = Scorer(config(dtype="bfloat16")).score(batch)
    np.testing.assert_allclose(scores, plain_scores(samples), rtol=0.1, atol=0.1)
    assert not np.array_equal(scores, torch.tensor(scores).bfloat16().float().numpy())


def test_missing_weights_are_an_error(config: Callable, folder: str, tmp_path: Path) -> None:
    path = tmp_path / "headless"
    shutil.copytree(folder, path)
    weights = load_file(path / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EnvironmentProblem) as caught:
        Scorer(config(path=str(path)))
    assert str(caught.value) == (
        f"reward 'model': {path} lacks the weights score.weight\n    copy the model again, or export it again"
    )


def test_a_tokenizer_with_more_tokens_than_the_model_is_an_error(config: Callable, folder: str) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        Scorer(config()).score(SequenceBatch.from_lists([[3, 400]]))
    assert str(caught.value) == (
        f"the tokenizer in {folder} gives the token id 400, but the model has 258 embeddings\n"
        "    copy the tokenizer files that the model was trained with there"
    )


def test_a_gpu_that_is_not_there_is_an_error(config: Callable) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EnvironmentProblem) as caught:
        Scorer(config(gpus=1))
    assert str(caught.value) == (
        "reward 'model' has gpus: 1, but PyTorch sees no GPU\n"
        "    set gpus: 0 to score on CPU, or install a CUDA build of torch"
    )
