"""Runs a job with nothing but PyTorch and ``transformers``: ``python -m compare.plain_runner job.json``.

SFT and GRPO as one would write them first: padded batches, ``generate``, AdamW. It needs no environment of its own, so
the short comparison in ``.ci/run`` has it as its peer.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from compare.progress import Progress
from compare.replay import Replay
from compare.workloads import EOS, Job, read_rows, share_of_odd_characters

PAD = 0


def main(path: str) -> None:
    """Train as the job says.

    Raises:
        ValueError: the workload is neither SFT nor GRPO without a KL term, or not in fp32.
    """
    job = Job.read(path)
    if job.shape.kind not in ("sft", "grpo") or job.shape.beta or job.precision != "fp32":
        raise ValueError(f"the plain runner knows SFT, and GRPO without a KL term, in fp32; not {job.workload}")
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=job.shape.learning_rate, weight_decay=0.0, fused=True)
    make = _examples if job.shape.kind == "sft" else _rollouts
    rows, progress = read_rows(job.rows), Progress(job.progress)
    for step in range(job.steps):
        batch = make(job, model, tokenizer, rows[step * job.shape.rows : (step + 1) * job.shape.rows])
        _train(model, optimizer, batch, progress, rollouts=job.shape.kind == "grpo")


def _examples(job: Job, model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> dict[str, Tensor]:
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    answers = [[*tokenizer(row["completion"])["input_ids"], EOS] for row in rows]
    return _padded(prompts, answers, [1.0] * len(rows))


def _rollouts(job: Job, model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> dict[str, Tensor]:
    shape = job.shape
    inputs = tokenizer(
        [row["prompt"] for row in rows],
        return_tensors="pt",
        padding=True,
        padding_side="left",
        return_token_type_ids=False,
    )
    config = GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=shape.completions[1],
        num_return_sequences=shape.group_size,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    if job.replay:
        replay = Replay(job.replay, lambda text: tokenizer(text)["input_ids"], max_tokens=shape.completions[1])
        answers = [replay.take(row["prompt"]) for row in rows for _ in range(shape.group_size)]
    else:
        with torch.inference_mode():
            written = model.generate(**inputs, generation_config=config)
        answers = [_until_end(ids) for ids in written[:, inputs["input_ids"].shape[1] :].tolist()]
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows for _ in range(shape.group_size)]
    rewards = torch.tensor([share_of_odd_characters(tokenizer.decode(a, skip_special_tokens=True)) for a in answers])
    groups = rewards.view(-1, shape.group_size)
    return _padded(prompts, answers, (groups - groups.mean(1, keepdim=True)).flatten().tolist())


def _until_end(ids: list[int]) -> list[int]:
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


def _padded(prompts: list[list[int]], answers: list[list[int]], weights: list[float]) -> dict[str, Tensor]:
    """One sequence a row; ``weight`` [B, T] is 0 where nothing is trained on, ``trained`` 1 elsewhere."""
    sequences = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
    width = max(map(len, sequences))
    batch = {name: torch.zeros(len(sequences), width) for name in ("trained", "weight")}
    batch |= {name: torch.full((len(sequences), width), PAD) for name in ("input_ids", "attention_mask")}
    for row, (ids, answer, weight) in enumerate(zip(sequences, answers, weights, strict=True)):
        batch["input_ids"][row, : len(ids)] = torch.tensor(ids)
        batch["attention_mask"][row, : len(ids)] = 1
        batch["trained"][row, len(ids) - len(answer) : len(ids)] = 1.0
        batch["weight"][row, len(ids) - len(answer) : len(ids)] = weight
    return batch


def _train(
    model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], progress: Progress, *, rollouts: bool
) -> None:
    """Minimise ``- Σ weight · log π / Σ trained``; for rollouts the ratio to the old policy stands for log π."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    targets = batch["input_ids"][:, 1:]
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    if rollouts:
        logprobs = (logprobs - logprobs.detach()).exp()
    trained = batch["trained"].sum()
    loss = -(logprobs * batch["weight"][:, 1:]).sum() / trained
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    progress.step(
        loss=float(loss),
        grad_norm=float(norm),
        tokens=int(batch["attention_mask"].sum()),
        trained_tokens=int(trained),
        sequences=len(batch["input_ids"]),
    )


if __name__ == "__main__":
    main(sys.argv[1])
