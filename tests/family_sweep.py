"""What the product makes of a model family, stage by stage, against what transformers computes with it."""

from __future__ import annotations

import logging
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import families
import numpy as np
import torch
from rl_backend_fsdp2.backend import Fsdp2Backend
from rl_backend_fsdp2.config import Fsdp2Config
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, WorkerContext
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import AdapterSpec, ModelSpec, OptimizerSpec, Role
from rl_core.errors import EnvironmentProblem, RLError
from rl_generation_hf.config import HfGeneratorConfig
from rl_generation_hf.generator import HfGenerator
from safetensors.torch import save_file
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

CLOSE = 2e-5
"""In float32, relative to the largest number (plus 1): after four layers some hundred roundings of 6e-8 each."""

POLICY = Role("policy", trainable=True)
REWARD = Role("reward", trainable=True, head="scalar")
LENGTHS = (5, 12, 3, 20)
"""Shorter and longer than a sliding window (8)."""

NEW_TOKENS = 10


class NotInTransformers(Exception):
    """transformers has nothing to compare with."""


class Mismatch(AssertionError):
    """A number that should be another."""


def nll(outputs: Any, batch: Any, scale: Scale) -> tuple[torch.Tensor, dict[str, Any]]:
    """The mean negative log-prob of every token but the first of each sequence."""
    return -outputs.logprobs.sum() / scale.tokens, {}


NLL = LossSpec("family_sweep:nll")


class Family:
    """A tiny model of a family in a folder, and what transformers computes with it.

    Attributes:
        not_run: why transformers cannot build, load or run it.
    """

    def __init__(self, name: str, folder: Path, **changes: Any) -> None:
        self.name = name
        self.folder = str(folder / "model")
        self.config = families.tiny_config(name, **changes)
        self.probabilities = families.switch_dropout_on(self.config)
        draw = np.random.default_rng(0)
        self.sequences = [draw.integers(3, families.VOCABULARY, n).tolist() for n in LENGTHS]
        self.not_run: Exception | None = None
        try:
            families.tiny_model(self.config).save_pretrained(self.folder)
            self.model = eager(self.folder)  # some that can be built cannot be loaded
            self.expected = logprobs(self.model, self.sequences)
        except AssertionError:  # of the table of small configs
            raise
        except Exception as error:
            self.not_run = error
            self.config.save_pretrained(self.folder)
            if not list(Path(self.folder).glob("*.safetensors")):
                save_file({}, f"{self.folder}/model.safetensors", metadata={"format": "pt"})

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(path=self.folder, max_length=families.POSITIONS)


def logprobs(model: Any, sequences: list[list[int]]) -> np.ndarray:
    """Of every token (0 for the first of a sequence), each sequence by itself: float32 [T]."""
    found = []
    with torch.no_grad():
        for sequence in sequences:
            ids = torch.tensor(sequence)
            log_p = torch.log_softmax(model(input_ids=ids[None], use_cache=False).logits[0].float(), -1)
            found += [0.0, *log_p[:-1].gather(1, ids[1:, None])[:, 0].tolist()]
    return np.array(found, np.float32)


def eager(folder: str, kind: Any = AutoModelForCausalLM, **options: Any) -> Any:
    """The folder's model as transformers loads it."""
    return kind.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32, **options).eval()


@contextmanager
def backend(**options: Any) -> Iterator[Fsdp2Backend]:
    made = Fsdp2Backend(Fsdp2Config(name="fsdp2", **options))
    made.setup(WorkerContext(0, 1, "127.0.0.1", 0, threads=1, seed=5))
    try:
        yield made
    finally:
        made.close()


def optimizer(**changes: Any) -> OptimizerSpec:
    return OptimizerSpec(**{"learning_rate": 1e-2, "max_grad_norm": None, **changes})


def check(name: str, got: Any, expected: Any, tolerance: float = CLOSE) -> None:
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if got.shape != expected.shape:
        raise Mismatch(f"{name}: shape {got.shape}, should be {expected.shape}")
    gap = float(np.abs(got - expected).max(initial=0.0))
    if not gap <= tolerance * (1 + float(np.abs(expected).max(initial=0.0))):
        raise Mismatch(f"{name} differ by {gap:.2g}")


def ours(made: Fsdp2Backend, sequences: list[list[int]]) -> np.ndarray:
    return made.forward("policy", SequenceBatch.from_lists(sequences), ("logprobs",), 1.0)["logprobs"]


def load(family: Family) -> None:
    with backend() as made:
        made.load(POLICY, family.spec, optimizer())


def forward(family: Family, **options: Any) -> None:
    """Each sequence's log-probs are those it has by itself, whatever else is in the batch."""
    with backend(**options) as made:
        made.load(POLICY, family.spec, optimizer())
        check("log-probs", ours(made, family.sequences), family.expected)
        check("log-probs of a sequence alone", ours(made, family.sequences[:1]), family.expected[: LENGTHS[0]])


def ragged(family: Family) -> None:
    """The same in the rows of the kernel ``cpu``."""
    with warnings_of("rl_torch.kernels.apply") as log:
        forward(family, kernels=["cpu"])
    if any("is not used" in text or "failed the test" in text for text in log):
        raise EnvironmentProblem("the kernel cpu is left out")


def sharded(family: Family) -> None:
    """What several processes or 16 bits need: built without storage, read piece by piece, sharded by FSDP."""
    with backend(cpu_offload=True) as made:
        made.load(POLICY, family.spec, optimizer())
        check("log-probs", ours(made, family.sequences), family.expected)


def scale_of(sequences: list[list[int]]) -> Scale:
    return Scale(tokens=sum(map(len, sequences)), sequences=len(sequences), units=len(sequences))


def gradient(family: Family) -> None:
    """The gradient's norm, and the weights after a step that is proportional to it."""
    rate = 1e-2
    spec = optimizer(learning_rate=rate, eps=1e3, betas=(0.0, 0.0))  # the step is rate · g / 1000
    with backend() as made:
        made.load(POLICY, family.spec, spec)
        result = made.train("policy", SequenceBatch.from_lists(family.sequences), NLL, scale_of(family.sequences))
    model = eager(family.folder)
    total = sum(map(len, family.sequences))
    for sequence in family.sequences:
        ids = torch.tensor(sequence)
        log_p = torch.log_softmax(model(input_ids=ids[None], use_cache=False).logits[0].float(), -1)
        (-log_p[:-1].gather(1, ids[1:, None]).sum() / total).backward()
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))
    check("gradient norms", result.shared["grad_norm"] / norm, 1.0, 1e-4)


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """The prompt and its most likely continuation, by reading the whole in every step."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0].tolist()


def generate(family: Family) -> str | None:
    """Greedy completions are those of transformers without a cache, and their log-probs those of the whole sequence."""
    prompts = [family.sequences[i] for i in (0, 1, 2)]
    made = HfGenerator(HfGeneratorConfig(name="hf"))
    made.setup(WorkerContext(rank=0, world_size=1, master_address="", master_port=0, threads=1))
    try:
        with warnings_of("rl_generation_hf.forward") as said:
            made.load(family.spec, None)
        requests = SequenceBatch.from_lists(prompts, sequence_columns={"seed": np.arange(len(prompts))})
        batch = made.generate(requests, SamplingParams(max_new_tokens=NEW_TOKENS, temperature=0.0))
    finally:
        made.close()
    for row, prompt in enumerate(prompts):
        tokens = batch.tokens[batch.offsets[row] : batch.offsets[row + 1]].tolist()
        expected = greedy(family.model, prompt)
        if tokens != expected:
            raise Mismatch(f"completion {tokens[len(prompt) :]}, should be {expected[len(prompt) :]}")
        got = batch.token_columns["sampled_logprobs"][batch.offsets[row] : batch.offsets[row + 1]]
        check("sampled log-probs", got[len(prompt) :], logprobs(family.model, [tokens])[len(prompt) :])
    return "without a cache" if any("cache of keys and values cannot hold" in text for text in said) else None


def trained(family: Family, spec: ModelSpec, folder: str) -> np.ndarray:
    """Train a step, export to ``folder``; the log-probs after it."""
    with backend() as made:
        made.load(POLICY, spec, optimizer())
        made.train("policy", SequenceBatch.from_lists(family.sequences), NLL, scale_of(family.sequences))
        after = ours(made, family.sequences)
        made.export("policy", folder)
    if np.abs(after - family.expected).max() < 1e-3:
        raise Mismatch("a training step changes nothing")
    return after


def export(family: Family) -> None:
    """An exported folder is, for transformers, the trained model; its config has the folder's probabilities."""
    with tempfile.TemporaryDirectory() as folder:
        after = trained(family, family.spec, folder)
        reloaded = eager(folder)
        check("log-probs of the exported model", logprobs(reloaded, family.sequences), after)
        kept = families.probabilities(reloaded.config)
        if not family.probabilities.items() <= kept.items():
            raise Mismatch(f"exported config has {kept}, should have {family.probabilities}")


def adapter(family: Family) -> None:
    """The merged export, and the adapter by itself on the first model, are the trained model."""
    from dataclasses import replace

    from peft import PeftModel

    spec = replace(family.spec, adapter=AdapterSpec(kind="lora", rank=4, alpha=8.0))
    with tempfile.TemporaryDirectory() as folder:
        after = trained(family, spec, folder)
        check("log-probs of the merged export", logprobs(eager(folder), family.sequences), after)
        alone = PeftModel.from_pretrained(eager(family.folder), f"{folder}/adapter").eval()
        check("log-probs with the exported adapter", logprobs(alone, family.sequences), after)


def reward(family: Family) -> None:
    """Scores are those of the sequence classifier with one label."""
    if type(family.config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise NotInTransformers("transformers has no sequence classifier of this family")
    with tempfile.TemporaryDirectory() as folder:
        config = type(family.config).from_pretrained(family.folder)
        config.num_labels = 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
        model.save_pretrained(folder)
        with torch.no_grad():
            expected = [
                float(model(input_ids=torch.tensor([s]), use_cache=False).logits[0, 0]) for s in family.sequences
            ]
        with backend() as made:
            made.load(REWARD, ModelSpec(path=folder, max_length=families.POSITIONS), optimizer())
            batch = SequenceBatch.from_lists(family.sequences)
            check("scores", made.forward("reward", batch, ("scores",), 1.0)["scores"], expected)


class _Warnings(logging.Handler):
    """What was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def warnings_of(name: str) -> Iterator[list[str]]:
    logger, handler = logging.getLogger(name), _Warnings()
    logger.addHandler(handler)
    try:
        yield handler.texts
    finally:
        logger.removeHandler(handler)


_RUN: dict[str, Callable[[Family], str | None]] = {
    "load": load,
    "packed": lambda family: forward(family, packing="packed"),
    "padded": lambda family: forward(family, packing="padded"),
    "ragged": ragged,
    "auto": forward,
    "sharded": sharded,
    "gradient": gradient,
    "generate": generate,
    "export": export,
    "adapter": adapter,
    "reward": reward,
}


def sweep(name: str, stages: tuple[str, ...] = tuple(_RUN), **changes: Any) -> dict[str, str]:
    """``ok``, ``none: …``, ``refused: …`` or ``wrong: …`` for every stage; nothing after a refused load.

    What transformers itself cannot build or run has to be refused.
    """
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        family = Family(name, Path(folder), **changes)
        for stage in stages:
            try:
                note = _RUN[stage](family)
            except NotInTransformers as error:
                found[stage] = f"none: {error}"
            except RLError as error:
                found[stage] = f"refused: {_first_line(error)}"
            except Exception as error:
                found[stage] = f"wrong: {type(error).__name__}: {error}"
            else:
                found[stage] = f"ok: {note}" if note else "ok"
            if family.not_run is not None and not found[stage].startswith("refused"):
                found[stage] = f"wrong: not refused, though transformers has {family.not_run!r}"
            if stage == "load" and found[stage] != "ok":
                break
    return found


def _first_line(error: Exception) -> str:
    """Without paths, which differ from run to run."""
    return re.sub(r"(the model )?/[^ ]*/model\b:? ?", "", str(error).partition("\n")[0])
