"""A model with two end tokens, through a run: rollouts and evaluation end at both, and the export keeps them."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from support import metrics_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
END, ANSWER = 3, "7"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Ids: padding 0, end 1, then the two of a turn; it writes 7 or the end of a turn, whatever it reads."""
    folder = tmp_path_factory.mktemp("model")
    names = ["<pad>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
    raw = Tokenizer(models.BPE({name: i for i, name in enumerate([*names, *pre_tokenizers.ByteLevel.alphabet()])}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(names)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    ends = {"eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": False}
    # Eight rows more than there are tokens, as published models have them.
    built = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer) + 8, max_position_embeddings=128, **shape, **ends))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.fill_(1.0 if parameter.ndim == 1 else 0.0)
        built.model.embed_tokens.weight.fill_(1.0)
        for token in (END, tokenizer.convert_tokens_to_ids(ANSWER), len(tokenizer) + 1):
            built.lm_head.weight[token].fill_(1.0)
    built.generation_config.eos_token_id = [1, END]
    built.save_pretrained(folder)
    return folder


def test_a_run_ends_completions_at_each_end_token_and_exports_them(model, rl, tmp_path):
    row = {"prompt": [{"role": "user", "content": "hi"}], "answer": ANSWER}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    config = {
        "model": {"path": str(model), "max_length": 96},
        "algorithm": {"name": "grpo", "prompts_per_step": 1, "group_size": 32, "learning_rate": 0.0},
        "backend": {"name": "fsdp2"},
        "generator": {"name": "hf", "max_new_tokens": 24},
        "data": {"name": "jsonl", "path": "rows.jsonl"},
        "eval_data": {"name": "jsonl", "path": "rows.jsonl"},
        "evaluators": [{"name": "accuracy", "n": 16, "temperature": 1.0, "max_new_tokens": 24}],
        "rewards": [{"name": "numeric"}],
        "run": {"name": "ends", "directory": "run", "steps": 1, "cpus": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    rl("run", tmp_path / "run.yaml")
    metrics = {name: value for row in metrics_of(tmp_path / "run") for name, value in row.items()}
    assert 1 < metrics["rollout/completion_tokens_mean"] < 4, "each of two tokens is as likely"
    assert metrics["rollout/truncated_fraction"] == metrics["eval/truncated_fraction"] == 0
    shown = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert shown
    assert all(set(sample["completion"]) <= {ANSWER} for sample in shown), "no end token, no row without a token"
    export = tmp_path / "run" / "export"
    assert AutoModelForCausalLM.from_pretrained(export).generation_config.eos_token_id == [1, END]
