"""The model itself: loading it, and scores of token sequences. Imported in the replicas only."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np
import torch
from rl_core.batch import SequenceBatch
from rl_core.errors import EnvironmentProblem, RLError
from rl_huggingface.foreign import foreign
from rl_huggingface.model_folder import check_model_folder
from rl_torch.pretrained import forget_quantization, load_pretrained
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from rl_reward_model.batching import batches
from rl_reward_model.config import ModelRewardConfig
from rl_reward_model.folder import config_problem

logger = logging.getLogger(__name__)


class Scorer:
    """A sequence-classification model with one label.

    Raises:
        EnvironmentProblem: the path holds no such model, weights are missing, or there is no GPU.
    """

    def __init__(self, config: ModelRewardConfig) -> None:
        self.config = config
        if config.gpus and not torch.cuda.is_available():
            raise EnvironmentProblem(
                f"reward {config.name!r} has gpus: {config.gpus:g}, but PyTorch sees no GPU\n"
                "    set gpus: 0 to score on CPU, or install a CUDA build of torch"
            )
        self._device = torch.device("cuda" if config.gpus else "cpu")
        self._model = _load(config).to(self._device)
        self._embeddings = self._model.get_input_embeddings().weight.shape[0]

    @torch.inference_mode()
    def score(self, batch: SequenceBatch) -> np.ndarray:
        """float32 [B]: the model's output at each sequence's last token.

        Raises:
            EnvironmentProblem: a token id that the model has no embedding for.
            RLError: out of GPU memory.
        """
        if len(batch.tokens) and int(batch.tokens.max()) >= self._embeddings:
            raise EnvironmentProblem(
                f"the tokenizer in {self.config.path} gives the token id {int(batch.tokens.max())}, but the model has "
                f"{self._embeddings} embeddings\n    copy the tokenizer files that the model was trained with there"
            )
        scores = np.zeros(len(batch), np.float32)
        try:
            for indices in batches(batch.lengths, self.config.batch_tokens):
                scores[indices] = self._forward(batch.select(indices))
        except torch.OutOfMemoryError as error:
            raise RLError(
                f"reward {self.config.name!r} is out of GPU memory with {self.config.batch_tokens} tokens at once\n"
                "    lower its batch_tokens, or set dtype: bfloat16"
            ) from error
        return scores

    def _forward(self, batch: SequenceBatch) -> np.ndarray:
        """float32 [B], padded on the right."""
        filler = self._filler(batch.tokens[batch.offsets[1:] - 1])
        rows = np.full((len(batch), int(batch.lengths.max())), filler, np.int64)
        mask = np.arange(rows.shape[1]) < batch.lengths[:, None]
        rows[mask] = batch.tokens
        output = self._model(
            input_ids=torch.from_numpy(rows).to(self._device),
            attention_mask=torch.from_numpy(mask.astype(np.int64)).to(self._device),
        )
        return output.logits.float().reshape(-1).cpu().numpy()

    def _filler(self, last: np.ndarray) -> int:
        """An id to pad with: the model's own, or, where it has none, one that closes none of the sequences.

        transformers reads the score at the last token that differs from ``pad_token_id``, in training
        as here, so a model's own padding token must stay what it was.
        """
        own = self._model.config.get_text_config().pad_token_id
        if own is not None:
            return own
        taken = set(last.tolist())
        filler = next(i for i in range(len(taken) + 1) if i not in taken)
        for config in (self._model.config, self._model.config.get_text_config()):
            config.pad_token_id = filler
        return filler


def _load(config: ModelRewardConfig) -> Any:
    transformers_logging.disable_progress_bar()
    trust, what = config.trust_remote_code, f"the model of the reward {config.name!r},"
    advice = "path must be a Hugging Face folder or a hub id this machine can download"
    with foreign(config.path, what=what, fix=advice):
        if os.path.isdir(config.path):
            check_model_folder(config.path)
        shape = AutoConfig.from_pretrained(config.path, trust_remote_code=trust)
        found = config_problem(shape.to_dict(), config.path)
        if found is not None:
            raise EnvironmentProblem(f"reward {config.name!r}: {found}")
        forget_quantization(shape)
        model, new = load_pretrained(
            AutoModelForSequenceClassification,
            config.path,
            shape,
            dtype=getattr(torch, config.dtype),
            trust_remote_code=trust,
            what=what,
        )
    if new:
        raise EnvironmentProblem(
            f"reward {config.name!r}: {config.path} lacks the weights {', '.join(sorted(new))}\n"
            "    copy the model again, or export it again"
        )
    model.config.use_cache = False
    _score_in_float32(model)
    return model.eval().requires_grad_(False)


def _score_in_float32(model: Any) -> None:
    """bfloat16 has 8 bits for a score; the head is tiny, so it computes in float32."""
    head = getattr(model, "score", None)
    if isinstance(head, torch.nn.Linear):
        head.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
