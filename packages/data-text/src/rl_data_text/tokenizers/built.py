"""Shared parts of the tokenizers built from data: their texts, their chat template, and their wrapping.

They are byte-level BPE with Qwen2's pre-tokenizer, because that is what survives every loader:
transformers ignores the pre-tokenizer in ``tokenizer.json`` for some model types (qwen2) and
rebuilds that one, and a tokenizer of another make would silently lose spaces and newlines there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rl_core.contracts.data import Row
from rl_huggingface.chat_options import row_template_kwargs, row_tools

from rl_data_text.tokenizers.chat import ChatTemplate, Extras

PAD, EOS, UNK, BOS = "<pad>", "<eos>", "<unk>", "<bos>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""Lines of ``role: content``; an assistant's line ends with the end token."""

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_TEXT_COLUMNS = ("prompt", "completion", "messages", "chosen", "rejected", "answer")


def byte_level(model: Any) -> Any:
    """A ``tokenizers.Tokenizer`` around ``model`` that splits, maps bytes to characters, and back."""
    from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def wrap(tokenizer: Any, *, unk: bool = False, bos: bool = False) -> Any:
    """The Hugging Face tokenizer around a ``tokenizers.Tokenizer``, which holds the special tokens already."""
    from transformers import PreTrainedTokenizerFast

    # Without a name for it, some loaders add an unknown token of their own to the vocabulary.
    special = {"pad_token": PAD, "eos_token": EOS, "unk_token": UNK if unk else EOS}
    if bos:
        special["bos_token"] = BOS
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def texts(rows: Sequence[Row], chat_template: str | None, kwargs: Mapping[str, Any]) -> Iterator[str]:
    """All text of the rows' canonical columns; messages as the chat template renders them."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    renderer = wrap(Tokenizer(BPE()))
    if chat_template is not None:
        renderer.chat_template = chat_template
    chat = ChatTemplate(renderer, kwargs=kwargs)
    for row in rows:
        for column in _TEXT_COLUMNS:
            value = row.get(column)
            if isinstance(value, str):
                yield value
            elif isinstance(value, int | float) and column == "answer":
                yield str(value)
            elif isinstance(value, list | tuple) and value and column != "answer":
                extras = Extras(row_tools(row), row_template_kwargs(row))
                text = chat.prompt(value, extras) if column == "prompt" else chat.whole(value, extras)
                yield text.replace(EOS, "")
