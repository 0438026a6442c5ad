"""From samples to token sequences, as reward models are trained on them.

The prompt has the tokens it is sampled from; the completion continues behind it and is closed with the end token (for
messages the one that the chat template closes a turn with): what ``Tokenizer.encode_example`` gives for the same row in
training.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rl_core.contracts.reward import Sample
from rl_core.errors import DataError, EnvironmentProblem
from rl_huggingface.chat_calls import CallFitter
from rl_huggingface.chat_messages import cleaned, continues, leading_token
from rl_huggingface.chat_options import row_template_kwargs, row_tools
from rl_huggingface.chat_rendering import Form, shared_renderer
from rl_huggingface.foreign import foreign, read_json_object
from rl_huggingface.model_folder import check_files, check_model_folder

from rl_reward_model.config import ModelRewardConfig
from rl_reward_model.folder import learned_positions

logger = logging.getLogger(__name__)

_CONTEXT = 64
"""Characters in front of a text that decide how it is tokenized."""

_PROBE = "It is 7.\n\nAnd now?"
_TURN = "…the assistant's turn…"


class Encoder:
    """The reward model's tokenizer, and the limit on the length of what it reads.

    Raises:
        EnvironmentProblem: the tokenizer cannot be loaded or has no end token, or ``max_tokens`` is
            more than the model can read.
    """

    def __init__(self, config: ModelRewardConfig) -> None:
        self.config = config
        self._tokenizer = load_tokenizer(config.path, trust_remote_code=config.trust_remote_code)
        self._backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            # A tokenizer.json may carry settings of whoever trained it; only max_tokens cuts here.
            self._backend.no_truncation()
            self._backend.no_padding()
        if self._tokenizer.eos_token_id is None:
            raise EnvironmentProblem(
                f"the tokenizer of {config.path} has no end-of-sequence token, which closes what a reward model reads\n"
                '    set "eos_token" in its tokenizer_config.json'
            )
        self._eos = int(self._tokenizer.eos_token_id)
        self._chat = ChatTemplate(self._tokenizer)
        self._end = self._chat.ending()
        opening = list(self._tokenizer("")["input_ids"])
        self._opening = opening[:1] if opening and opening[0] == self._tokenizer.bos_token_id else []
        self.limit = _limit(config)
        self._warned = False

    def encode(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """int32 [T_i] for each sample.

        Raises:
            DataError: a sample is longer than ``max_tokens`` under ``on_long: error``, has no
                prompt, or the chat template refuses its messages; the message names the row.
        """
        prompts: dict[int, tuple[Any, str, list[int]]] = {}  # a group shares its row; the value keeps the id taken
        sequences = []
        for sample in samples:
            prompt = sample.row.get("prompt")
            whole = self.config.chat == "conversation" and not isinstance(prompt, str)
            try:
                if whole:
                    tokens = self._tokens(self._render(sample.row, sample.completion))
                else:
                    if id(sample.row) not in prompts:
                        text = self._prompt(sample.row)
                        prompts[id(sample.row)] = (sample.row, text, self._prompt_tokens(prompt, text))
                    _, text, before = prompts[id(sample.row)]
                    tokens = self._closed(before, text, sample.completion, "" if isinstance(prompt, str) else self._end)
            except DataError as error:
                raise DataError(f"{place_of(sample)}: reward {self.config.name!r}: {error}") from error.__cause__
            sequences.append(np.array(tokens, np.int32))
        return [self._fitted(tokens, sample) for tokens, sample in zip(sequences, samples, strict=True)]

    def _closed(self, before: list[int], text: str, completion: str, end: str) -> list[int]:
        """The tokens of a prompt and of its completion, which ends with ``end`` or the end-of-sequence token."""
        has_ended = bool(end) and completion.rstrip().endswith(end.strip())
        tokens = self._after(text, completion.rstrip() if has_ended else completion + end)
        return [*before, *tokens, *([] if end or tokens[-1:] == [self._eos] else [self._eos])]

    def _prompt(self, row: Mapping[str, Any]) -> str:
        prompt = row.get("prompt")
        return prompt if isinstance(prompt, str) else self._render(row, None)

    def _prompt_tokens(self, prompt: Any, text: str) -> list[int]:
        """The opening token is there once, also where the text has it already."""
        ids = self._tokens(text)
        return ids if not isinstance(prompt, str) or ids[:1] == self._opening else [*self._opening, *ids]

    def _after(self, before: str, text: str) -> list[int]:
        """The tokens of ``text`` where it continues after ``before``: without the space that some put before a text."""
        plain = self._tokens(text)
        if not before or not text or self._tokens("\n" + text)[-len(plain) :] == plain:
            return plain
        for context in (before[-_CONTEXT:], "\n", "."):
            known, both = self._tokens(context), self._tokens(context + text)
            if both[: len(known)] == known:
                return both[len(known) :]
        return plain

    def _render(self, row: Mapping[str, Any], completion: str | None) -> str:
        """The conversation as text, with ``completion`` as the assistant's answer, or up to where it begins."""
        if not self._tokenizer.chat_template:
            raise DataError(
                f"the prompt is a list of messages, but the tokenizer of {self.config.path} has no chat template\n"
                "    add a chat_template.jinja to that folder, or use text prompts"
            )
        conversation = cleaned(_messages(row.get("prompt")))
        begun = continues(conversation)
        if completion is not None and begun:
            conversation[-1] = {**conversation[-1], "content": conversation[-1]["content"] + completion}
        elif completion is not None:
            conversation.append({"role": "assistant", "content": completion})
        form: Form = "whole" if completion is not None else "continue" if begun else "ask"
        try:
            return self._chat.render(conversation, row_tools(row), row_template_kwargs(row), form)
        except DataError as error:
            raise DataError(f"{self.config.path}: {error}") from error

    def _tokens(self, text: str) -> list[int]:
        if not text:
            return []
        if self._backend is not None:
            return self._backend.encode(text, add_special_tokens=False).ids
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _fitted(self, tokens: np.ndarray, sample: Sample) -> np.ndarray:
        if not len(tokens):
            raise DataError(
                f"{place_of(sample)}: reward {self.config.name!r}: the chat template of {self.config.path} renders "
                "nothing\n    change the template, or the messages of this row"
            )
        if self.limit is None or len(tokens) <= self.limit:
            return tokens
        facts = (
            f"{place_of(sample)}: prompt and completion have {len(tokens)} tokens for reward {self.config.name!r}, "
            f"max_tokens is {self.limit}"
        )
        if self.config.on_long == "error":
            raise DataError(f"{facts}\n    raise its max_tokens, or set on_long: truncate_left to keep only the end")
        if not self._warned:
            logger.warning("%s: its beginning is cut off (and that of every longer sample)", facts)
            self._warned = True
        return tokens[-self.limit :]


class ChatTemplate:
    """The chat template of a reward model's tokenizer: what ``apply_chat_template`` gives, with limits on its time."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._calls = CallFitter()

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: list[Any], kwargs: Mapping[str, Any], form: Form
    ) -> str:
        """``messages``, as :func:`rl_huggingface.chat_messages.cleaned` leaves them, as text.

        Raises:
            DataError: there is no template, it refuses the messages, or it exceeds a limit.
        """
        try:
            template = self._tokenizer.get_chat_template(tools=tools or None)
        except ValueError as error:
            raise DataError(str(error)) from error
        special = {name: str(token) for name, token in self._tokenizer.special_tokens_map.items()}
        variables = {**special, "tools": tools or None, "documents": None, **kwargs}
        fitted = self._calls.fit(template, messages, variables)
        return shared_renderer().render(template, fitted, variables, [(len(fitted), form)])[0].text

    def ending(self) -> str:
        """What the template ends an assistant's message with: a token, and white space in front of it; or nothing."""
        messages = [{"role": "user", "content": "user"}, {"role": "assistant", "content": _TURN}]
        try:
            text = self.render(messages, [], {}, "whole") if self._tokenizer.chat_template else ""
        except DataError:  # a template for other messages; rendering these reports it
            return ""
        added = {str(token) for token in self._tokenizer.added_tokens_decoder.values()}
        return leading_token(text.partition(_TURN)[2], added)


def load_tokenizer(path: str, *, trust_remote_code: bool) -> Any:
    """The Hugging Face tokenizer of a folder or hub id.

    Raises:
        EnvironmentProblem: it cannot be loaded.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    local = os.path.isdir(path)
    advice = "check path; a hub id needs the network or a cached copy"
    with foreign(path, what="the tokenizer of the reward model", fix=advice):
        if local:
            check_files(Path(path))
        # AutoTokenizer would rebuild a tokenizer saved under this class as the one usual for the model type.
        if local and _saved_class(path) == PreTrainedTokenizerFast.__name__:
            return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
        loaded = AutoTokenizer.from_pretrained(path, local_files_only=local, trust_remote_code=trust_remote_code)
        if not loaded.is_fast or _keeps_text(loaded):
            return loaded
        # AutoTokenizer rebuilds byte-level tokenizers that are declared LlamaTokenizerFast (DeepSeek-R1's
        # distillations) as SentencePiece ones, which lose every space.
        as_published = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=local)
        return as_published if _keeps_text(as_published) else loaded


def _keeps_text(tokenizer: Any) -> bool:
    """Whether a simple text is the same after tokenizing and decoding; not so for those that fold case or spaces."""
    return tokenizer.decode(tokenizer.encode(_PROBE, add_special_tokens=False)).strip() == _PROBE


def place_of(sample: Sample) -> str:
    """Where a sample's row comes from, for messages."""
    return str(sample.row.get("__where__", "a row"))


def _saved_class(path: str) -> str | None:
    file = os.path.join(path, "tokenizer_config.json")
    if not os.path.isfile(file) or not os.path.isfile(os.path.join(path, "tokenizer.json")):
        return None
    fields = read_json_object(file)
    return None if "auto_map" in fields else fields.get("tokenizer_class")


def _messages(prompt: Any) -> Sequence[Mapping[str, Any]]:
    if isinstance(prompt, list | tuple) and prompt:
        return prompt
    raise DataError("the row has no prompt (text or a list of messages)\n    map one in the data section")


def _limit(config: ModelRewardConfig) -> int | None:
    """``max_tokens``, or what learned position embeddings allow."""
    positions = learned_positions(_model_fields(config.path, trust_remote_code=config.trust_remote_code))
    if positions is None or config.max_tokens is None:
        return config.max_tokens or positions
    if config.max_tokens > positions:
        raise EnvironmentProblem(
            f"reward {config.name!r}: max_tokens is {config.max_tokens}, but {config.path} has positions for "
            f"{positions} tokens\n    lower max_tokens to {positions}"
        )
    return config.max_tokens


def _model_fields(path: str, *, trust_remote_code: bool) -> Mapping[str, Any]:
    from transformers import AutoConfig

    advice = "path must be a Hugging Face folder with config.json, or a hub id this machine can download"
    with foreign(path, what="the reward model", fix=advice):
        if os.path.isdir(path):
            check_model_folder(path)
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).to_dict()
