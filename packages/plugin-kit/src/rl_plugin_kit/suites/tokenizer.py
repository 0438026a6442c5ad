"""Conformance rules for tokenizers (:mod:`rl_core.contracts.tokenizer`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rl_core.contracts.data import Row
from rl_core.contracts.tokenizer import LossOn, Tokenizer

from rl_plugin_kit.rows import questions
from rl_plugin_kit.suites.base import ComponentConformance

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


class TokenizerConformance(ComponentConformance):
    """Attributes:
    model_path: a folder to load from; without one it is built from ``rows``.
    rows: with ``prompt`` and ``completion`` as text.
    """

    kind = "tokenizer"
    contracts = (Tokenizer,)
    model_path: ClassVar[str | None] = None
    rows: ClassVar[Sequence[Row]] = tuple(questions())

    def test_ids_are_within_the_vocabulary(self) -> None:
        one = self._loaded()
        self.expect(
            isinstance(one.vocab_size, int) and one.vocab_size > 0,
            f"vocab_size is {one.vocab_size!r}, expected the number of token ids",
        )
        lacking = [name for name in SPECIAL if name not in one.special_tokens]
        self.expect(not lacking, f"special_tokens lacks {', '.join(lacking)} (None where there is none)")
        ids = {name: one.special_tokens[name] for name in SPECIAL}
        odd = [
            f"{name} {value}" for name, value in ids.items() if value is not None and not 0 <= value < one.vocab_size
        ]
        self.expect(not odd, f"outside the vocabulary of {one.vocab_size}: {', '.join(odd)}")
        for row in self.rows:
            tokens = one.encode_prompt(row["prompt"])
            self._check_tokens("encode_prompt", tokens)
            outside = tokens[(tokens < 0) | (tokens >= one.vocab_size)].tolist()
            self.expect(
                not outside, f"encode_prompt returned {outside[:1]}, outside the vocabulary of {one.vocab_size}"
            )

    def test_the_completion_is_trained_on_with_its_end(self) -> None:
        one = self._loaded()
        end = one.special_tokens["eos_token_id"]
        for row in self.rows:
            tokens, mask = self._example(one, row, "completion")
            self.expect(
                mask[-1] == 1 and (end is None or tokens[-1] == end),
                f"the example {tokens.tolist()} with loss_mask {mask.tolist()} does not end with a trained "
                f"end-of-sequence token ({end})",
            )
            said = one.decode(tokens[mask == 1]).strip()
            self.expect(
                said == row["completion"].strip(),
                f"the trained tokens of completion {row['completion']!r} decode to {said!r}",
            )

    def test_an_example_begins_with_its_prompt_as_it_is_sampled_from(self) -> None:
        one = self._loaded()
        for row in self.rows:
            prompt = one.encode_prompt(row["prompt"])
            tokens, mask = self._example(one, row, "completion")
            self.expect(
                tokens[: len(prompt)].tolist() == prompt.tolist() and not mask[: len(prompt)].any(),
                f"the example of prompt {row['prompt']!r} begins with {tokens[: len(prompt)].tolist()}, loss_mask "
                f"{mask[: len(prompt)].tolist()}; encode_prompt gives {prompt.tolist()}, not trained on",
            )

    def test_all_tokens_can_be_trained_on(self) -> None:
        one = self._loaded()
        for row in self.rows:
            tokens, mask = self._example(one, row, "completion")
            whole, everywhere = self._example(one, row, "all")
            self.expect(tokens.tolist() == whole.tolist(), "loss_on changes the tokens of an example")
            self.expect(
                (everywhere >= mask).all() and everywhere.sum() > mask.sum(),
                f"with loss_on 'all' the loss_mask is {everywhere.tolist()}; it covers the prompt, too",
            )

    def test_decoding_leaves_special_tokens_out(self) -> None:
        one = self._loaded()
        ids = sorted({value for value in one.special_tokens.values() if value is not None})
        self.expect(one.decode(ids) == "", f"decode of the special tokens {ids} is {one.decode(ids)!r}, not empty")
        self.expect(one.decode(np.array([], np.int32)) == "", "decode of no tokens is not empty")

    def test_what_it_saves_is_a_tokenizer_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "tokenizer"
        one = self._loaded()
        one.save(str(folder))
        files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        self.expect(
            "tokenizer_config.json" in files, f"save writes {', '.join(files) or 'nothing'}, no tokenizer_config.json"
        )
        again = self.build()
        again.load(str(folder), self.rows)
        for row in self.rows:
            before, after = (each.encode_prompt(row["prompt"]).tolist() for each in (one, again))
            self.expect(before == after, f"after save and load {row['prompt']!r} is {after}, before {before}")

    def _loaded(self) -> Any:
        one = self.build()
        one.load(self.model_path, self.rows)
        return one

    def _example(self, one: Any, row: Row, loss_on: LossOn) -> tuple[np.ndarray, np.ndarray]:
        tokens, mask = one.encode_example(row, loss_on)
        self._check_tokens("encode_example", tokens)
        self.expect(
            mask.dtype == np.float32 and mask.shape == tokens.shape,
            f"encode_example gives a loss_mask of {mask.dtype} {list(mask.shape)}, expected float32 [{len(tokens)}]",
        )
        return tokens, mask

    def _check_tokens(self, method: str, tokens: Any) -> None:
        self.expect(
            isinstance(tokens, np.ndarray) and tokens.dtype == np.int32 and tokens.ndim == 1,
            f"{method} returned {getattr(tokens, 'dtype', type(tokens).__name__)}, expected an int32 array [T]",
        )
