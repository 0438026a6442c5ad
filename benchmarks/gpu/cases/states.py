"""What is saved, exported, adapted and put to sleep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rl_core.contracts.model import AdapterSpec, ModelSpec, OptimizerSpec, Role
from safetensors.torch import load_file

from gpu import batches, oracle, product
from gpu.registry import Comparison, Machine, case, compare, same

LARGE = {"architecture": "qwen2", "hidden_size": 1024, "layers": 8, "heads": 16, "kv_heads": 4, "ffn": 4096}
LEFT = 0.05
"""Part of a sleeping model's memory that may stay taken: workspaces of cuBLAS and the like."""


def large_model(machine: Machine) -> ModelSpec:
    """One whose memory stands out from that of libraries: 180M parameters on a GPU."""
    if not machine.is_cuda:
        return oracle.model_folder(machine)
    return ModelSpec(init=LARGE, vocab_size=32768, max_length=1024)


@case("equality", seconds=20)
def checkpoint(machine: Machine) -> Iterator[Comparison]:
    """Saved and restored, weights and optimizer are the same bit for bit."""
    batch, spec = batches.texts(machine.shape.vocabulary, machine.shape.longest), oracle.model_folder(machine)
    folders = [Path(machine.folder) / f"checkpoint-{i}" for i in range(2)]
    for folder in folders:
        folder.mkdir()
    with product.backend(machine, precision="bf16") as trainer:
        trainer.load(product.POLICY, spec, product.SMOOTH)
        for _ in range(2):
            product.train(trainer, batch, batches.NLL)
        trainer.save("policy", str(folders[0]))
        saved = product.weights(trainer)
        exact = product.train(trainer, batch, batches.NLL)
    with product.backend(machine, precision="bf16", async_save=True) as trainer:
        trainer.load(product.POLICY, oracle.model_folder(machine, seed=1), product.SMOOTH)
        trainer.restore("policy", str(folders[0]))
        yield same("weights", product.weights(trainer), saved)
        trainer.save("policy", str(folders[1]))
        trainer.finish_saving()
        yield same("everything saved", *(_files(folder) for folder in reversed(folders)))
        found = product.train(trainer, batch, batches.NLL)
    # Not bit for bit: some of CUDA's sums have no fixed order.
    relative = machine.rounding(torch.bfloat16)
    yield Comparison("loss of the next step", abs(found[0] / exact[0] - 1), relative if machine.is_cuda else 0)


def _files(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint but the random-number state, which models do not use."""
    files = sorted((folder / "shards").glob("*.safetensors"))
    return {f"{path.name} {name}": tensor for path in files for name, tensor in load_file(path).items()}


@case("equality", seconds=25)
def export(machine: Machine) -> Iterator[Comparison]:
    """transformers reads from the exported folder what was trained."""
    yield from _export(machine, adapter=None)


@case("equality", seconds=30)
def lora(machine: Machine) -> Iterator[Comparison]:
    """With an adapter: the merged export, the adapter next to it, and the model without it."""
    yield from _export(machine, adapter=AdapterSpec("lora", rank=4, alpha=8.0))


def _export(machine: Machine, adapter: AdapterSpec | None) -> Iterator[Comparison]:
    batch, spec = batches.texts(machine.shape.vocabulary, machine.shape.longest), oracle.model_folder(machine)
    folder = Path(machine.folder) / f"export-{'lora' if adapter else 'full'}"
    made = ModelSpec(path=spec.path, vocab_size=spec.vocab_size, max_length=spec.max_length, adapter=adapter)
    optimizer = OptimizerSpec(learning_rate=1e-2)
    with product.backend(machine, precision="fp32" if adapter is None else "bf16") as trainer:
        trainer.load(product.POLICY, made, optimizer)
        before = product.logprobs(trainer, batch)
        losses = [product.train(trainer, batch, batches.NLL)[0] for _ in range(3)]
        after = product.logprobs(trainer, batch)
        trainer.export("policy", str(folder))
        if adapter is not None:
            trainer.load(Role("reference", trainable=False, base_of="policy"), made, None)
            base = product.logprobs(trainer, batch, role="reference")
            yield compare("the model without its adapter", base, before, absolute=0.0)
    dtype = torch.float32 if adapter is None else torch.bfloat16
    absolute = machine.rounding(dtype) * float(np.abs(after).max())
    yield Comparison("the loss has not gone down", float(losses[-1] >= losses[0]), 0.0)
    mask = torch.from_numpy(batch.token_columns["loss_mask"])
    exported = ModelSpec(path=str(folder), vocab_size=spec.vocab_size)
    yield compare("log-probs of the export", after, _exact(oracle.load(exported), batch) * mask, absolute=absolute)
    if adapter is not None:
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(oracle.load(spec).float(), folder / "adapter").double().eval()
        found = _exact(adapted, batch) * mask
        yield compare("log-probs of the exported adapter", after, found, absolute=absolute)


@torch.no_grad()
def _exact(model: torch.nn.Module, batch: object) -> torch.Tensor:
    found = oracle.outputs(model, "lm", batch, ("logprobs",)).logprobs  # type: ignore[arg-type]
    assert found is not None
    return found


@case("equality", seconds=45)
def sleeping_trainer(machine: Machine) -> Iterator[Comparison]:
    """Asleep, a backend gives its memory back; awake again, it goes on as if nothing had been."""
    spec = large_model(machine)
    batch = batches.texts(spec.vocab_size, machine.shape.longest)
    with product.backend(machine, precision="bf16") as trainer:
        trainer.load(product.POLICY, spec, OptimizerSpec(learning_rate=1e-4))
        product.train(trainer, batch, batches.NLL)
        weights, before = product.weights(trainer), product.logprobs(trainer, batch)
        taken = _reserved(machine)
        trainer.sleep()
        if machine.is_cuda:
            yield Comparison("memory that stays taken, of all", _reserved(machine) / taken, LEFT)
        trainer.wake()
        yield same("weights", product.weights(trainer), weights)
        yield compare("log-probs", product.logprobs(trainer, batch), before, absolute=0.0)
        product.train(trainer, batch, batches.NLL)  # with the optimizer's state


@case("equality", seconds=30)
def sleeping_generator(machine: Machine) -> Iterator[Comparison]:
    """Asleep, a generator gives its memory back; awake again, it says the same."""
    spec = large_model(machine)
    requests = product.prompts(spec.vocab_size, machine.shape.longest)
    with product.generator(machine, spec, dtype="bfloat16") as generator:
        first = generator.generate(requests, product.greedy(8))
        taken = _reserved(machine)
        generator.sleep()
        if machine.is_cuda:
            yield Comparison("memory that stays taken, of all", _reserved(machine) / taken, LEFT)
        generator.wake()
        again = generator.generate(requests, product.greedy(8))
        yield Comparison("tokens that differ", float((first.tokens != again.tokens).sum()), 0)


def _reserved(machine: Machine) -> int:
    """Bytes that PyTorch holds of the device's memory."""
    return torch.cuda.memory_reserved() if machine.is_cuda else 0
