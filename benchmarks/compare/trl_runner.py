"""Runs a job with TRL, in TRL's own environment: ``python -m compare.trl_runner job.json``.

Whatever TRL does by default and this project does not (16-bit precision, recomputing activations, pinned memory,
checkpoints, progress bars) is switched off, and what both do is set to the same values.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    TrainerCallback,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from compare.progress import Progress
from compare.replay import Replay
from compare.workloads import Job, read_rows, share_of_odd_characters


def main(path: str) -> None:
    """Train as the job says."""
    job = Job.read(path)
    torch.set_num_threads(job.threads)
    progress = _Reporter(job.progress)
    with tempfile.TemporaryDirectory() as folder:
        make = {"sft": _sft, "dpo": _dpo, "rm": _rm, "grpo": _grpo}[job.shape.kind]
        trainer = make(job, _shared(job, folder), progress)
        trainer.add_callback(progress)
        trainer.train()


class _Reporter(TrainerCallback):
    """Writes a line for every step; the trainers below tell it what the step is made of."""

    def __init__(self, path: str) -> None:
        self._progress = Progress(path)
        self.counts: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs is not None and "grad_norm" in logs:
            self._progress.step(loss=logs["loss"], grad_norm=logs["grad_norm"], **self.counts)


def _counting(trainer: type, reporter: _Reporter) -> type:
    """``trainer`` with its batches counted where the loss is computed."""

    class Counting(trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
            reporter.counts = _count(inputs)
            return super().compute_loss(model, inputs, *args, **kwargs)

    return Counting


def _count(inputs: dict[str, torch.Tensor]) -> dict[str, float]:
    """Tokens and sequences of a batch, whatever kind it is of."""
    if "prompt_mask" in inputs:  # grpo
        trained = inputs["completion_mask"]
        tokens = inputs["prompt_mask"].sum() + trained.sum()
    else:
        tokens = inputs["attention_mask"].sum()
        trained = inputs.get("completion_mask", inputs["attention_mask"])
    if "labels" in inputs:
        trained = inputs["labels"][:, 1:] != -100
    return {"tokens": int(tokens), "trained_tokens": int(trained.sum()), "sequences": len(trained)}


def _shared(job: Job, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": job.precision == "bf16",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": job.shape.rows,
        "max_steps": job.steps,
        "learning_rate": job.shape.learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
    }


def _model(job: Job, auto: Any = AutoModelForCausalLM) -> PreTrainedModel:
    return auto.from_pretrained(job.model, dtype=torch.float32)


def _common(job: Job) -> dict[str, Any]:
    rows = Dataset.from_list(read_rows(job.rows))
    return {"train_dataset": rows, "processing_class": AutoTokenizer.from_pretrained(job.model)}


def _sft(job: Job, shared: dict[str, Any], reporter: _Reporter) -> Any:
    config = SFTConfig(**shared, train_sampling_strategy="sequential", max_length=None, loss_type="nll")
    return _counting(SFTTrainer, reporter)(_model(job), config, **_common(job))


def _dpo(job: Job, shared: dict[str, Any], reporter: _Reporter) -> Any:
    config = DPOConfig(**shared, train_sampling_strategy="sequential", max_length=None, beta=0.1)
    return _counting(DPOTrainer, reporter)(_model(job), _model(job), config, **_common(job))


def _rm(job: Job, shared: dict[str, Any], reporter: _Reporter) -> Any:
    config = RewardConfig(**shared, train_sampling_strategy="sequential", max_length=None)
    model = _model(job, AutoModelForSequenceClassification)
    return _counting(RewardTrainer, reporter)(model, config, **_common(job))


def _grpo(job: Job, shared: dict[str, Any], reporter: _Reporter) -> Any:
    shape = job.shape
    shared["per_device_train_batch_size"] = shape.sequences  # completions, not prompts
    config = GRPOConfig(
        **shared,
        shuffle_dataset=False,
        num_generations=shape.group_size,
        max_completion_length=shape.completions[1],
        temperature=1.0,
        beta=shape.beta,
        loss_type="dapo",
        scale_rewards="none",
        num_iterations=1,
    )
    base = _counting(GRPOTrainer, reporter)
    trainer = _replaying(base, job, job.replay) if job.replay else base
    return trainer(_model(job), reward_funcs=_reward, args=config, **_common(job))


def _reward(completions: list[str], **_: Any) -> list[float]:
    return [share_of_odd_characters(text) for text in completions]


def _replaying(trainer: type, job: Job, samples: str) -> type:
    """``trainer`` that takes completions from another system's samples instead of generating."""

    class Replaying(trainer):  # type: ignore[misc]
        def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
            tokenizer = self.processing_class
            replay = Replay(samples, lambda text: tokenizer(text)["input_ids"], max_tokens=job.shape.completions[1])
            return [replay.take(tokenizer.decode(ids)) for ids in prompt_ids], None

    return Replaying


if __name__ == "__main__":
    main(sys.argv[1])
