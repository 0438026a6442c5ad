"""The recipe with TRL, in TRL's own environment: ``python -m time_to_accuracy.trl_runner recipe.json``."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from time_to_accuracy.recipe import Recipe


def main(path: str) -> None:
    """Train both stages."""
    recipe = Recipe.read(path)
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(recipe.tokenizer)
    model = _model(recipe, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        for make in (_sft, _grpo):
            make(recipe, model, tokenizer, _shared(recipe, folder)).train()


def _model(recipe: Recipe, tokenizer: Any) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.ffn,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.max_length,
        initializer_range=recipe.initializer_range,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def _shared(recipe: Recipe, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": recipe.seed,
    }


def _sft(recipe: Recipe, model: Any, tokenizer: Any, shared: dict[str, Any]) -> SFTTrainer:
    config = SFTConfig(
        **shared,
        per_device_train_batch_size=recipe.sft_rows,
        max_steps=recipe.sft_steps,
        learning_rate=recipe.sft_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_steps,
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        max_length=None,
        loss_type="nll",
    )
    return SFTTrainer(
        model,
        config,
        train_dataset=Dataset.from_list(_rows(recipe.demonstrations)),
        processing_class=tokenizer,
        callbacks=[_Measure(recipe, tokenizer, "sft", recipe.sft_measured_every)],
    )


def _grpo(recipe: Recipe, model: Any, tokenizer: Any, shared: dict[str, Any]) -> GRPOTrainer:
    config = GRPOConfig(
        **shared,
        per_device_train_batch_size=recipe.prompts * recipe.group_size,  # completions, not prompts
        max_steps=recipe.grpo_steps,
        learning_rate=recipe.grpo_learning_rate,
        lr_scheduler_type="constant",
        warmup_steps=0,
        num_generations=recipe.group_size,
        max_completion_length=recipe.max_new_tokens,
        temperature=1.0,
        beta=0.0,
        loss_type="dapo",
        scale_rewards="group",
        num_iterations=1,
    )
    return GRPOTrainer(
        model,
        reward_funcs=_exact_match,
        args=config,
        train_dataset=Dataset.from_list(_rows(recipe.questions)),
        processing_class=tokenizer,
        callbacks=[_Measure(recipe, tokenizer, "grpo", recipe.grpo_measured_every)],
    )


def _exact_match(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [float(given == true) for given, true in zip(completions, answer, strict=True)]


class _Measure(TrainerCallback):
    """Held-out accuracy of greedy answers, every so many steps."""

    def __init__(self, recipe: Recipe, tokenizer: Any, stage: str, every: int) -> None:
        self._recipe, self._tokenizer, self._stage, self._every = recipe, tokenizer, stage, every
        rows = _rows(recipe.held_out)
        # All prompts are equally long, so nothing is padded.
        self._prompts = torch.tensor([tokenizer(row["prompt"])["input_ids"] for row in rows])
        self._answers = [row["answer"] for row in rows]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step == 1 and self._stage == "sft":
            self._write(state.global_step, None)
        if state.global_step % self._every == 0:
            self._write(state.global_step, self._accuracy(model))

    @torch.no_grad()
    def _accuracy(self, model: Any) -> float:
        model.eval()
        tokens = model.generate(
            self._prompts,
            attention_mask=torch.ones_like(self._prompts),
            max_new_tokens=self._recipe.max_new_tokens,
            do_sample=False,
        )[:, self._prompts.shape[1] :]
        model.train()
        given = self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return sum(g == a for g, a in zip(given, self._answers, strict=True)) / len(given)

    def _write(self, step: int, accuracy: float | None) -> None:
        with open(self._recipe.progress, "a") as file:
            file.write(json.dumps({"stage": self._stage, "step": step, "accuracy": accuracy}) + "\n")


def _rows(path: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


if __name__ == "__main__":
    main(sys.argv[1])
