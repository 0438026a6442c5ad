"""Byte-level BPE trained on the data (Sennrich et al. 2016, on bytes as in Radford et al. 2019)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from rl_core.contracts.data import Row
from rl_core.errors import DataError

from rl_data_text.config import BpeConfig
from rl_data_text.pretrained import load_pretrained
from rl_data_text.tokenizers.base import TextTokenizer, read_template
from rl_data_text.tokenizers.built import EOS, PAD, byte_level, texts, wrap

logger = logging.getLogger(__name__)


class BpeTokenizer(TextTokenizer):
    """``<pad>`` 0, ``<eos>`` 1, all 256 bytes (so that every text can be expressed), then merges.

    The same rows give the same tokenizer. With a model path the tokenizer saved there is loaded instead.
    """

    config: BpeConfig

    def obtain(self, model_path: str | None, rows: Sequence[Row], *, trust_remote_code: bool) -> Any:
        if model_path is not None:
            return load_pretrained(model_path, trust_remote_code=trust_remote_code)
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel
        from tokenizers.trainers import BpeTrainer

        if not rows:
            raise DataError("tokenizer 'bpe': there are no rows to train it on")
        tokenizer = byte_level(BPE())
        trainer = BpeTrainer(
            vocab_size=self.config.vocab_size,
            special_tokens=[PAD, EOS],
            initial_alphabet=sorted(ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(
            texts(rows, read_template(self.config.chat_template), self.config.chat_template_kwargs), trainer
        )
        size = tokenizer.get_vocab_size()
        if size < self.config.vocab_size:
            logger.info(
                "tokenizer 'bpe': the data gives %d tokens, fewer than vocab_size %d", size, self.config.vocab_size
            )
        return wrap(tokenizer)
