"""What ranks do in tests, example losses, and small models and batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rl_backend_megatron.backend import MegatronBackend
from rl_backend_megatron.config import MegatronConfig
from rl_backend_megatron.export import export
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, Topology, WorkerContext
from rl_core.contracts.model import ModelSpec, OptimizerSpec, Role
from rl_core.model import reduce_metrics
from rl_torch.models import build_model
from rl_torch.optim import learning_rate
from rl_torch.testing import outputs_from_logits
from rl_torch.weights import from_buckets

VOCAB = 96
PADDING = {"pad_token_id": 3}
POLICY = Role("policy", trainable=True)
NLL = LossSpec("megatron_helpers:nll")


def nll(outputs: Any, batch: Any, scale: Scale, *, poison: float = 0.0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Negative log-likelihood with an entropy metric where asked; ``poison`` spoils sequences marked ``bad``."""
    mask = batch["loss_mask"]
    loss = -(outputs.logprobs * mask).sum() / scale.tokens
    if poison:
        loss = loss * torch.where(batch["bad"].any(), poison, 1.0)
    metrics = {"tokens": mask.sum() / scale.tokens, "max_length": batch.lengths.max()}
    if outputs.entropy is not None:
        metrics["entropy"] = (outputs.entropy * mask).sum() / scale.tokens
    return loss, metrics


def nothing(outputs: Any, batch: Any, scale: Scale) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A loss that found no token to learn from."""
    return torch.zeros(()), {}


def squared_scores(outputs: Any, batch: Any, scale: Scale) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Regress the score of a sequence on its ``reward``, and every value on 1."""
    scores = (outputs.scores - batch.reward).square().sum() / scale.sequences
    values = ((outputs.values - 1).square() * batch.loss_mask).sum() / scale.tokens
    return scores + values, {}


def model_spec(*, layers: int = 2, tie: bool = True, architecture: str = "qwen2", seed: int = 3) -> ModelSpec:
    """A model of about 50k parameters."""
    init = {
        "architecture": architecture,
        "hidden_size": 32,
        "layers": layers,
        "heads": 4,
        "kv_heads": 2,
        "ffn": 64,
        "tie_embeddings": tie,
    }
    return ModelSpec(init=init, vocab_size=VOCAB, max_length=128, seed=seed)


def plain_model(spec: ModelSpec) -> torch.nn.Module:
    """The same model, without anything around it."""
    return build_model(spec, dtype=torch.float32)


@torch.no_grad()
def plain_outputs(
    spec: ModelSpec, batch: SequenceBatch, temperature: float, names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Full logits, one sequence at a time; zero where no log-prob is needed."""
    model = plain_model(spec)
    logits = [
        model(input_ids=torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64))[None]).logits[0]
        for i in range(len(batch))
    ]
    found = outputs_from_logits(logits, batch, names, temperature=temperature)
    first = np.zeros(len(batch.tokens), bool)
    first[batch.offsets[:-1]] = True
    needed = (batch.token_columns["loss_mask"] != 0) & ~first
    return {name: np.where(needed, getattr(found, name).numpy(), 0) for name in names}


def plain_loss(model: torch.nn.Module, batch: SequenceBatch) -> torch.Tensor:
    """The mean negative log-likelihood, one sequence at a time, from full logits."""
    total = torch.zeros(())
    for i in range(len(batch)):
        tokens = torch.from_numpy(batch.tokens[batch.sequence(i)].astype(np.int64))
        mask = torch.from_numpy(batch.token_columns["loss_mask"][batch.sequence(i)])
        log_p = torch.log_softmax(model(input_ids=tokens[None]).logits[0], -1)
        total = total - (log_p[:-1].gather(1, tokens[1:, None])[:, 0] * mask[1:]).sum()
    return total / float(batch.token_columns["loss_mask"].sum())


def plain_training(
    spec: ModelSpec, optimizer: OptimizerSpec, batch: SequenceBatch, steps: int
) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """The textbook loop: one sequence at a time, full logits, torch's AdamW and clipping."""
    model = plain_model(spec)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": optimizer.weight_decay}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=optimizer.betas, eps=optimizer.eps)
    record = []
    for step in range(steps):
        loss = plain_loss(model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.max_grad_norm)
        for group in adamw.param_groups:
            group["lr"] = learning_rate(optimizer, step)
        adamw.step()
        adamw.zero_grad()
        record.append((loss.item(), norm.item()))
    return record, dict(model.named_parameters())


def model_folder(directory: Path, *, architecture: str = "qwen2", tie: bool = True, layers: int = 2) -> ModelSpec:
    """A Hugging Face folder whose norms and biases are not all alike, as they are in a new model."""
    model = plain_model(replace(model_spec(architecture=architecture, tie=tie, layers=layers), special_tokens=PADDING))
    draws = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws) * (0.2 if parameter.ndim == 1 else 0.05))
    model.save_pretrained(directory)
    return ModelSpec(path=str(directory), max_length=128)


def random_batch(count: int = 12, *, low: int = 4, high: int = 30, seed: int = 0) -> SequenceBatch:
    """Ragged sequences whose second half carries the loss; units of two."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(low, high, count)
    return SequenceBatch.from_lists(
        [rng.integers(0, VOCAB, n) for n in lengths],
        token_columns={"loss_mask": [(np.arange(n) >= n // 2).astype(np.float32) for n in lengths]},
        sequence_columns={
            "unit": np.arange(count) // 2,
            "bad": np.arange(count) == 1,
            "reward": rng.normal(size=count).astype(np.float32),
        },
    )


def optimizer_spec(**changes: Any) -> OptimizerSpec:
    """A learning rate large enough to see; weight decay and clipping on."""
    return OptimizerSpec(**{"learning_rate": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.5, **changes})


@contextmanager
def backend(rank: int, world: int, port: int, **config: Any) -> Iterator[MegatronBackend]:
    """A backend that is set up, and closed at the end."""
    made = MegatronBackend(MegatronConfig(name="megatron", **config))
    made.place = made.setup(WorkerContext(rank, world, "127.0.0.1", port, threads=1, seed=5))
    try:
        yield made
    finally:
        made.close()


def shard_of(batch: SequenceBatch, place: Topology) -> SequenceBatch:
    """What the controller gives this rank."""
    return batch.select(batch.split_balanced(place.dp_size)[place.dp_rank])


def weights_of(made: MegatronBackend, role: str = "policy") -> dict[str, np.ndarray]:
    """Streamed weights, by name."""
    return {name: tensor.float().numpy() for name, tensor in from_buckets(made.weights(role))}


def train(rank: int, world: int, port: int, *, batch: SequenceBatch, steps: int = 1, **options: Any) -> dict[str, Any]:
    """Train a new policy for ``steps`` on ``batch``; see the keys of ``options`` below.

    ``restore`` and ``save`` are directories, ``export`` too; ``config`` holds backend fields.
    """
    loss = options.get("loss", NLL)
    role = options.get("role", POLICY)
    with backend(rank, world, port, **options.get("config", {})) as made:
        info = made.load(role, options.get("spec") or model_spec(), options.get("optimizer") or optimizer_spec())
        if "restore" in options:
            made.restore(role.name, options["restore"])
        shard = shard_of(batch, made.place)
        before = weights_of(made, role.name)
        results = [made.train(role.name, shard, loss, Scale.of(batch)) for _ in range(steps)]
        for name in ("save", "export"):
            if name in options:
                getattr(made, name)(role.name, options[name])
        return {
            "place": made.place,
            "info": info,
            "results": results,
            "before": before,
            "weights": weights_of(made, role.name),
            "random": torch.rand(3).numpy(),
            "evaluated": made.evaluate(role.name, shard, loss, Scale.of(batch)),
        }


def gradients(rank: int, world: int, port: int, *, batch: SequenceBatch, **options: Any) -> dict[str, np.ndarray]:
    """Gradients under Hugging Face names: they are put in the place of the parameters, which are then streamed."""
    with backend(rank, world, port, distributed_optimizer=False, **options["config"]) as made:
        made.load(POLICY, options["spec"], optimizer_spec(learning_rate=0.0, max_grad_norm=None))
        loaded = made._role("policy")
        loaded.trainer.clear = lambda: None  # which ends a step, and begins one
        made.train("policy", shard_of(batch, made.place), NLL, Scale.of(batch))
        for parameter in loaded.stage.parameters():
            parameter.data.copy_(parameter.main_grad)
        return weights_of(made, "policy")


def output_ranks(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers that the controller reads, in data-parallel order."""
    chosen = [answer for answer in answers if answer["place"].is_output]
    return sorted(chosen, key=lambda answer: answer["place"].dp_rank)


def metrics_of(answers: list[dict[str, Any]], step: int = 0) -> dict[str, float]:
    """What the controller reports of a step."""
    return reduce_metrics([answer["results"][step] for answer in output_ranks(answers)])


def forward(rank: int, world: int, port: int, *, batch: SequenceBatch, **options: Any) -> dict[str, Any]:
    """Outputs of an untrained model on this rank's shard."""
    role = options.get("role", POLICY)
    with backend(rank, world, port, **options.get("config", {})) as made:
        made.load(role, options.get("spec") or model_spec(), optimizer_spec())
        outputs = options.get("outputs", ("logprobs", "entropy"))
        shard = shard_of(batch, made.place)
        return {
            "place": made.place,
            "outputs": made.forward(role.name, shard, outputs, options.get("temperature", 1.0)),
        }


def merged(batch: SequenceBatch, answers: list[dict[str, Any]], name: str) -> np.ndarray:
    """One output of :func:`forward` in the batch's order, as the controller merges it."""
    chosen = output_ranks(answers)
    parts = batch.split_balanced(len(chosen))
    return batch.scatter(parts, [a["outputs"][name] for a in chosen], per_token=name != "scores")


def forward_after_training(
    rank: int, world: int, port: int, *, batch: SequenceBatch, directory: str, config: dict[str, Any]
) -> list[np.ndarray]:
    """Log-probs after a step, after another, and after going back to the first by ``restore``."""
    found = []
    with backend(rank, world, port, **config) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        shard = shard_of(batch, made.place)
        for turn in range(2):
            made.train("policy", shard, NLL, Scale.of(batch))
            if turn == 0:
                made.save("policy", directory)
            found.append(made.forward("policy", shard, ("logprobs",), 1.0)["logprobs"])
        made.restore("policy", directory)
        found.append(made.forward("policy", shard, ("logprobs",), 1.0)["logprobs"])
    return found


def two_roles_twice(
    rank: int, world: int, port: int, *, batch: SequenceBatch, config: dict[str, Any]
) -> list[Topology]:
    """Set up, load a policy and a frozen copy, compare them, close; and all of it again."""
    places = []
    for turn in range(2):
        made = MegatronBackend(MegatronConfig(name="megatron", **config))
        places.append(made.setup(WorkerContext(rank, world, "127.0.0.1", port + turn, threads=1)))
        made.load(POLICY, model_spec(), optimizer_spec())
        made.load(Role("reference", trainable=False), model_spec(), None)
        made.sleep()
        made.wake()
        ours, theirs = (made.forward(r, batch, ("logprobs",), 1.0)["logprobs"] for r in ("policy", "reference"))
        np.testing.assert_array_equal(ours, theirs)
        made.close()
    return places


def policy_and_base(
    rank: int, world: int, port: int, *, batch: SequenceBatch, spec: ModelSpec, config: dict[str, Any]
) -> dict[str, Any]:
    """Log-probs and streamed weights of a policy with an adapter and of its base, after three steps."""
    with backend(rank, world, port, **config) as made:
        made.load(POLICY, spec, optimizer_spec())
        made.load(Role("reference", trainable=False, base_of="policy"), spec, None)
        shard = shard_of(batch, made.place)
        for _ in range(3):
            made.train("policy", shard, NLL, Scale.of(batch))
        outputs = {
            role: made.forward(role, shard, ("logprobs",), 1.0)["logprobs"]
            for role in ("policy", "reference", "policy")
        }
        return {
            "place": made.place,
            "outputs": outputs,
            "policy": weights_of(made, "policy"),
            "reference": weights_of(made, "reference"),
        }


def save_and_go_on(
    rank: int, world: int, port: int, *, batch: SequenceBatch, directories: list[str], config: dict[str, Any]
) -> dict[str, Any]:
    """Save two roles at once in the background, train on meanwhile, restore both; losses of the next step."""
    value = Role("value", trainable=True, head="scalar")
    scores = LossSpec("megatron_helpers:squared_scores", outputs=("scores", "values"))
    found = {}
    with backend(rank, world, port, async_save=True, **config) as made:
        for role in (POLICY, value):
            made.load(role, model_spec(), optimizer_spec())
        shard, scale = shard_of(batch, made.place), Scale.of(batch)
        jobs = (("policy", NLL, directories[0]), ("value", scores, directories[1]))
        for role, loss, directory in jobs:
            made.train(role, shard, loss, scale)
            made.save(role, directory)
        found["at once"] = [[made.train(role, shard, loss, scale) for role, loss, _ in jobs] for _ in range(3)]
        made.finish_saving()
        assert not made.is_saving()
        for role, _, directory in jobs:
            made.restore(role, directory)
        found["restored"] = [[made.train(role, shard, loss, scale) for role, loss, _ in jobs] for _ in range(3)]
    return found


def export_of_many_files(rank: int, world: int, port: int, *, directory: str) -> None:
    """Export a new policy in files of 16 kB."""
    with backend(rank, world, port) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        export(made._role("policy"), Path(directory), made._joined(), file_bytes=2**14)


def parameters_by_kind(
    rank: int, world: int, port: int, *, spec: ModelSpec, role: Role, config: dict[str, Any]
) -> dict[str, int]:
    """Numbers on this rank: parameters, those trained; bytes of gradient buffers and, after a step, of moments."""
    scores = LossSpec("megatron_helpers:squared_scores", outputs=("scores", "values"))
    batch = random_batch(4)
    with backend(rank, world, port, **config) as made:
        made.load(role, spec, optimizer_spec())
        shard = shard_of(batch, made.place)
        made.train(role.name, shard, NLL if role.head == "lm" else scores, Scale.of(batch))
        loaded = made._role(role.name)
        inner = [part.optimizer for part in loaded.trainer.optimizer.chained_optimizers]
        moments = [state[name] for one in inner for state in one.state.values() for name in ("exp_avg", "exp_avg_sq")]
        return {
            "stage": made._joined().pp_rank,
            "parameters": sum(p.numel() for p in loaded.stage.parameters()),
            "trained": sum(p.numel() for p in loaded.stage.parameters() if p.requires_grad),
            "gradients": sum(buffer.grad_data.nbytes for buffer in loaded.trainer.ddp.buffers),
            "moments": sum(tensor.nbytes for tensor in moments),
        }


def make_directory(path: Path) -> str:
    """Create and name a directory."""
    path.mkdir(parents=True, exist_ok=True)
    return str(path)
