"""A table of chat models: tokenizers with chat templates as public models have them, and what is known of each.

The templates here are written for the tests, after the published formats; where a package brings a template, that is
used. Small tokenizers stand in for models whose tokenizer no package has.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import public_tokenizers
from rl_core.contracts.data import Row
from rl_data_text.config import TextTokenizerConfig
from rl_data_text.tokenizers.base import TextTokenizer

CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
QWEN25 = (
    "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\nYou are Qwen.' }}"
    "{%- if tools %}{{- '\n\n# Tools\n' }}{%- for t in tools %}{{- t | tojson + '\n' }}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|im_start|>' + (m.role if m.role != 'tool' else 'user') + '\n' }}"
    "{%- if m.role == 'tool' %}{{- '<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{%- elif m.content %}{{- m.content }}{%- endif %}"
    "{%- for c in m.tool_calls or [] %}"
    "{{- '<tool_call>\n' + {'name': c.function.name, 'arguments': c.function.arguments} | tojson + '\n</tool_call>' }}"
    "{%- endfor %}{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA31 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '<|eot_id|>' }}"
    "{%- for m in messages %}"
    "{%- if m.role == 'user' and loop.first and tools %}"
    "{{- '<|start_header_id|>user<|end_header_id|>\n\nFunctions:\n' + tools | tojson + '\n\n' }}"
    "{{- m.content | trim + '<|eot_id|>' }}"
    "{%- elif 'tool_calls' in m %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{{- {'name': m.tool_calls[0].function.name, 'parameters': m.tool_calls[0].function.arguments} | tojson }}"
    "{{- '<|eot_id|>' }}"
    "{%- else %}{{- '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) + '<|end_header_id|>\n\n' }}"
    "{{- m.content | trim + '<|eot_id|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
GLM4 = (
    "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SMOLLM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are SmolLM.<|im_end|>\n' }}{% endif %}" + CHATML
)
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% else %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
GPT_OSS = (
    "{{ '<|start|>system<|message|>Current date: ' + (date or strftime_now('%Y-%m-%d')) + '<|end|>' }}"
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)


@dataclass(frozen=True)
class ChatModel:
    """A tokenizer with its template.

    Attributes:
        package: npm's tokenizer; without one, ``special`` tokens (bos or none, eos, pad, others) of a small stand-in.
        template: the chat template; empty for the package's own.
        stop: what ends the assistant's turn.
        lead: what the template puts between its generation prompt and a plain last answer.
        keeps: whether what it renders of earlier turns stays as it was when they were last ones.
        tools: whether it describes tools, renders calls, and takes results.
        user_first: it refuses a conversation that the assistant begins.
    """

    package: str = ""
    special: tuple[str | None, ...] = ()
    template: str = ""
    stop: str = "<|im_end|>"
    lead: str = ""
    keeps: bool = True
    tools: bool = False
    user_first: bool = False


CHATML_TOKENS = (None, "<|im_end|>", "<|endoftext|>", "<|im_start|>")
MODELS = {
    "qwen3": ChatModel("qwen3", lead="<think>\n\n</think>\n\n", keeps=False, tools=True),
    "qwen2.5": ChatModel("qwen3", template=QWEN25, tools=True),
    "llama3": ChatModel("llama3", stop="<|eot_id|>"),
    "llama3.1": ChatModel("llama3", template=LLAMA31, stop="<|eot_id|>", tools=True),
    "llama2": ChatModel("llama2", template=LLAMA2, stop=" </s>", lead=" "),
    "zephyr": ChatModel("llama2", template=ZEPHYR, stop="</s>"),
    "mistral": ChatModel("llama2", template=MISTRAL, stop="</s>", user_first=True),
    "deepseek-v3": ChatModel("deepseek_v3", stop="<｜end▁of▁sentence｜>"),
    "phi3": ChatModel(special=("<s>", "<|endoftext|>", "<pad>", "<|end|>"), template=PHI3, stop="<|end|>"),
    "phi4": ChatModel(
        special=(None, "<|endoftext|>", "<pad>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"), template=PHI4
    ),
    "glm4": ChatModel(
        special=(None, "<|endoftext|>", "<pad>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>"),
        template=GLM4,
        stop="<|endoftext|>",
    ),
    "smollm": ChatModel(special=CHATML_TOKENS, template=SMOLLM),
    "gemma": ChatModel(
        special=("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"), template=GEMMA, stop="<end_of_turn>"
    ),
    "gemma3": ChatModel("gemma3", stop="<end_of_turn>", user_first=True),
    "mistral-nemo": ChatModel("mistral_nemo", stop="</s>", user_first=True),
    "gpt-oss": ChatModel(
        "gptoss", template=GPT_OSS, stop="<|return|>", lead="<|channel|>final<|message|>", keeps=False
    ),
}
LARGE = ("gemma3", "mistral-nemo", "gpt-oss")
"""Those whose tokenizer takes seconds to load."""


def tokenizer_of(model: ChatModel) -> Any:
    """The Hugging Face tokenizer, one of its own for every call."""
    made = public_tokenizers.tokenizer(model.package) if model.package else stand_in(model.special)
    own = copy.copy(made)
    if model.template:
        own.chat_template = model.template
    return own


@cache
def stand_in(special: tuple[str | None, ...]) -> Any:
    """A small byte-level BPE tokenizer with special tokens (bos or None, eos, pad, others)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[token for token in special if token],
        show_progress=False,
    )
    raw.train_from_iterator(["What is the answer? It is 42. And 7 times 6? The same."] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=special[0], eos_token=special[1], pad_token=special[2]
    )


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class Given(TextTokenizer):
    """The tokenizer it is given."""

    given: Any = None

    def obtain(self, model_path: str | None, rows: Sequence[Row], *, trust_remote_code: bool) -> Any:
        return self.given


def product(model: ChatModel, **config: Any) -> TextTokenizer:
    made = Given(TextTokenizerConfig(name="given", **config))
    made.given = tokenizer_of(model)
    made.load(None, [])
    return made


@cache
def pair(name: str) -> tuple[TextTokenizer, Any]:
    """The product's tokenizer and transformers' own."""
    return product(MODELS[name]), tokenizer_of(MODELS[name])


def oracle(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
