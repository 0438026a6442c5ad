"""One token per character of the data, for small models from scratch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rl_core.contracts.data import Row
from rl_core.errors import DataError

from rl_data_text.config import CharactersConfig
from rl_data_text.pretrained import load_pretrained
from rl_data_text.tokenizers.base import TextTokenizer, read_template
from rl_data_text.tokenizers.built import BOS, EOS, PAD, UNK, byte_level, texts, wrap
from rl_data_text.tokenizers.ends import FILLER


class CharacterTokenizer(TextTokenizer):
    """Special tokens first (``<pad>`` 0, ``<eos>`` 1, ``<unk>`` 2), then the characters in code-point order.

    A character outside ASCII takes a few tokens more in the vocabulary (its bytes), and still is
    one token in a text. With a model path the tokenizer saved there is loaded instead.
    """

    config: CharactersConfig

    def obtain(self, model_path: str | None, rows: Sequence[Row], *, trust_remote_code: bool) -> Any:
        if model_path is not None:
            return load_pretrained(model_path, trust_remote_code=trust_remote_code)
        alphabet = set(self.config.alphabet).union(
            *texts(rows, read_template(self.config.chat_template), self.config.chat_template_kwargs)
        )
        if not alphabet:
            raise DataError("tokenizer 'characters': the rows have no text\n    set tokenizer.alphabet")
        special = [PAD, EOS, UNK, *([BOS] if self.config.bos else [])]
        vocab, merges = _vocabulary(special, sorted(alphabet))
        self._fill_up(vocab)
        return self._build(vocab, merges, special)

    def _fill_up(self, vocab: dict[str, int]) -> None:
        size = self.config.vocab_size
        if size is None:
            return
        if len(vocab) > size:
            raise DataError(
                f"tokenizer 'characters': the data needs {len(vocab)} tokens, more than vocab_size {size}\n"
                f"    set tokenizer.vocab_size to {len(vocab)} or more"
            )
        for index in range(size - len(vocab)):
            vocab[FILLER.format(index)] = len(vocab)

    def _build(self, vocab: dict[str, int], merges: list[tuple[str, str]], special: list[str]) -> Any:
        from tokenizers.models import BPE
        from tokenizers.processors import TemplateProcessing

        tokenizer = byte_level(BPE(vocab, merges, unk_token=UNK, fuse_unk=False))
        tokenizer.add_special_tokens(special)
        if self.config.bos:
            tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocab[BOS])])
        return wrap(tokenizer, unk=True, bos=self.config.bos)


def _vocabulary(special: list[str], alphabet: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token ids, and the merges that put a character's UTF-8 bytes together.

    No merge joins two characters, because a character's first byte never occurs inside another.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    to_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
    vocab = {token: index for index, token in enumerate(special)}
    merges: list[tuple[str, str]] = []
    for character in alphabet:
        ((symbols, _),) = to_bytes.pre_tokenize_str(character)
        for symbol in symbols:
            vocab.setdefault(symbol, len(vocab))
        for length in range(1, len(symbols)):
            if symbols[: length + 1] not in vocab:
                vocab[symbols[: length + 1]] = len(vocab)
                merges.append((symbols[:length], symbols[length]))
    return vocab, merges
