"""Conformance rules for training backends (:mod:`rl_core.contracts.backend`), on one rank and a tiny model."""

from __future__ import annotations

import dataclasses
import gzip
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import Backend, LossSpec, Scale, TrainResult
from rl_core.contracts.model import OptimizerSpec, Role
from rl_core.contracts.profiling import FORWARD_BACKWARD, Profiles
from rl_core.contracts.profiling import OPTIMIZER as OPTIMIZER_PART

from rl_plugin_kit.local_model import LocalModel, lone_worker, same_weights, set_up
from rl_plugin_kit.reference import TinyShape, from_buckets, token_log_probs
from rl_plugin_kit.suites.base import ComponentConformance

POLICY = Role("policy", trainable=True)
OPTIMIZER = OptimizerSpec(learning_rate=1e-2, max_grad_norm=None)
NLL = LossSpec("rl_plugin_kit.losses:negative_log_likelihood")


class BackendConformance(ComponentConformance):
    """Attributes:
    shape: the model; a backend that cannot build it names one it can (``qwen2`` or ``llama``).
    tolerance: largest difference of a log-probability from numpy in float64; a backend that computes in 16 bits
        needs a larger one.
    """

    kind = "backend"
    contracts = (Backend, Profiles)
    shape: ClassVar[TinyShape] = TinyShape()
    tolerance: ClassVar[float] = 1e-4

    def test_loading_reports_the_model(self) -> None:
        backend = self.build()
        place = backend.setup(lone_worker())
        self.expect(
            (place.dp_rank, place.dp_size, place.is_output) == (0, 1, True),
            f"setup as the only rank returned {place}, expected Topology(dp_rank=0, dp_size=1, is_output=True)",
        )
        info = backend.load(POLICY, self.shape.spec(), OPTIMIZER)
        counted = sum(value.size for value in from_buckets(backend.weights("policy")).values())
        backend.close()
        self.expect(
            info.parameters == counted, f"load reports {info.parameters} parameters, and weights streams {counted}"
        )
        self.expect(
            info.vocab_size >= self.shape.vocab_size,
            f"load reports a vocabulary of {info.vocab_size} for a tokenizer of {self.shape.vocab_size}",
        )

    def test_weights_stream_under_hugging_face_names(self) -> None:
        with self._policy() as (backend, _):
            found, again = (from_buckets(backend.weights("policy")) for _ in range(2))
        expected = {name: value.shape for name, value in self.shape.weights(0).items()}
        wrong = sorted(name for name, shape in expected.items() if name not in found or found[name].shape != shape)
        unknown = sorted(set(found) - set(expected) - {"lm_head.weight"})
        self.expect(not wrong, f"weights lacks, or has in another shape: {', '.join(wrong)}")
        self.expect(not unknown, f"weights streams names that the model has not: {', '.join(unknown)}")
        self.expect(same_weights(found, again), "streaming the weights twice gives different bytes")

    def test_log_probs_are_those_of_the_model(self) -> None:
        batch = sequences()
        with self._policy() as (_, policy):
            weights = policy.weights()
            for temperature in (1.0, 0.7):
                found = policy.forward(batch, ("logprobs", "entropy"), temperature=temperature)
                expected = token_log_probs(self.shape, weights, batch, temperature)
                mask = batch.token_columns["loss_mask"]
                for name, values in zip(("logprobs", "entropy"), expected, strict=True):
                    self._check_column(name, found[name], batch)
                    gap = float(np.abs(found[name] - values * mask).max())
                    self.expect(
                        gap <= self.tolerance,
                        f"{name} at temperature {temperature} differ from the model's by up to {gap:.3g} "
                        f"(0 where loss_mask is; allowed: {self.tolerance:g})",
                    )

    def test_a_scalar_head_gives_a_value_per_token_and_a_score_per_sequence(self) -> None:
        batch = sequences()
        with set_up(self.build()) as backend:
            value = LocalModel(backend, Role("value", trainable=True, head="scalar"), self.shape.spec(), OPTIMIZER)
            values, scores = value.forward(batch, ("values",))["values"], value.forward(batch, ("scores",))["scores"]
        self._check_column("values", values, batch)
        self.expect(scores.shape == (len(batch),), f"scores have shape {scores.shape}, expected ({len(batch)},)")

    def test_training_lowers_the_loss_and_reports_it(self) -> None:
        with self._policy() as (backend, _):
            results = [self._train(backend, sequences()) for _ in range(8)]
        for result in results:
            missing = {"loss"} - set(result.partial) | {"grad_norm", "learning_rate"} - set(result.shared)
            self.expect(not missing, f"train does not report {', '.join(sorted(missing))}")
            self.expect(result.finite, "train reports a loss that is not finite")
        first, last = results[0].partial["loss"], results[-1].partial["loss"]
        self.expect(last < 0.9 * first, f"8 steps with learning rate 0.01 took the loss from {first:.4f} to {last:.4f}")
        self.expect(
            results[0].shared["learning_rate"] == OPTIMIZER.learning_rate,
            f"train reports the learning rate {results[0].shared['learning_rate']}, not {OPTIMIZER.learning_rate}",
        )

    def test_the_scale_divides_the_loss_and_its_gradient(self) -> None:
        scale = Scale.of(sequences())
        double = dataclasses.replace(scale, tokens=2 * scale.tokens)
        with self._policy() as (backend, _):
            whole = self._train(backend, sequences(), scale=scale)
        with self._policy() as (backend, _):
            half = self._train(backend, sequences(), scale=double)
        pairs = (("loss", whole.partial, half.partial), ("grad_norm", whole.shared, half.shared))
        for name, expected, found in pairs:
            self.expect(
                np.isclose(found[name], expected[name] / 2, rtol=1e-4),
                f"with scale.tokens doubled {name} is {found[name]:.6g}, not half of {expected[name]:.6g}: "
                "nothing but the loss may divide",
            )

    def test_micro_batches_do_not_change_the_results(self) -> None:
        results, weights = [], []
        for tokens in (10_000, 8):
            with self._policy(max_tokens_per_microbatch=tokens) as (backend, policy):
                results.append(self._train(backend, sequences()))
                weights.append(policy.weights())
        losses = [result.partial["loss"] for result in results]
        norms = [result.shared["grad_norm"] for result in results]
        for name, (a, b) in (("loss", losses), ("grad_norm", norms)):
            self.expect(
                np.isclose(a, b, rtol=max(1e-4, self.tolerance)),
                f"{name} is {a:.6g} in one micro-batch and {b:.6g} in several; see Scale",
            )

    def test_evaluating_gives_the_loss_and_changes_nothing(self) -> None:
        batch = sequences()
        with self._policy() as (backend, policy):
            before = policy.weights()
            result = backend.evaluate("policy", batch, NLL, Scale.of(batch))
            self.expect(same_weights(before, policy.weights()), "evaluate changed the weights")
            trained = self._train(backend, batch)
        self.expect(
            np.isclose(result.partial["loss"], trained.partial["loss"], rtol=1e-5),
            f"evaluate gives the loss {result.partial['loss']:.6g}, train {trained.partial['loss']:.6g}",
        )

    def test_a_loss_that_is_not_finite_takes_no_step(self) -> None:
        with self._policy() as (backend, policy):
            before = policy.weights()
            result = self._train(backend, sequences(), LossSpec("rl_plugin_kit.losses:not_a_number"))
            after = policy.weights()
        self.expect(not result.finite, "a loss of nan is reported as finite")
        self.expect(same_weights(before, after), "a loss of nan changed the weights")

    def test_an_empty_shard_is_fine(self) -> None:
        empty = sequences().select([])
        with self._policy() as (backend, policy):
            before = policy.weights()
            found = policy.forward(empty, ("logprobs",))["logprobs"]
            self._train(backend, empty, scale=Scale.of(sequences()))
            after = policy.weights()
        self.expect(found.shape == (0,), f"forward of an empty shard has shape {found.shape}")
        gap = max(float(np.abs(before[name] - after[name]).max()) for name in before)
        self.expect(gap == 0, f"training on an empty shard moved a weight by {gap:.3g}")

    def test_a_restored_training_continues_to_the_last_bit(self, tmp_path: Path) -> None:
        with self._policy() as (backend, policy):
            for _ in range(2):
                self._train(backend, sequences())
            policy.save(str(tmp_path))
            straight = [self._train(backend, sequences()).partial["loss"] for _ in range(2)]
            expected = policy.weights()
        with self._policy(seed=1) as (backend, policy):
            policy.restore(str(tmp_path))
            resumed = [self._train(backend, sequences()).partial["loss"] for _ in range(2)]
            found = policy.weights()
        self.expect(resumed == straight, f"the losses after restore are {resumed}, and {straight} without it")
        self.expect(same_weights(found, expected), "two steps after restore the weights differ from those without it")

    def test_what_is_saved_is_the_state_of_that_moment(self, tmp_path: Path) -> None:
        with self._policy() as (backend, policy):
            saved = policy.weights()
            backend.save("policy", str(tmp_path))
            self._train(backend, sequences())
            backend.finish_saving()
            self.expect(not backend.is_saving(), "is_saving is true after finish_saving")
            policy.restore(str(tmp_path))
            self.expect(same_weights(policy.weights(), saved), "training after save changed what restore reads")

    def test_the_export_holds_the_weights_that_are_streamed(self, tmp_path: Path) -> None:
        with self._policy() as (backend, policy):
            weights = policy.weights()
            backend.export("policy", str(tmp_path))
        self.expect((tmp_path / "config.json").is_file(), "export writes no config.json")
        exported = read_safetensors(tmp_path)
        missing = sorted(set(weights) - set(exported) - {"lm_head.weight"})
        self.expect(not missing, f"export lacks {', '.join(missing)}")
        differ = sorted(n for n, value in exported.items() if n in weights and not _equal(value, weights[n]))
        self.expect(not differ, f"export and weights differ in {', '.join(differ)}")

    def test_sleeping_and_waking_change_nothing(self) -> None:
        with self._policy() as (backend, policy):
            before = policy.weights()
            backend.sleep()
            backend.wake()
            self.expect(same_weights(before, policy.weights()), "sleep and wake changed the weights")
            self._train(backend, sequences())

    def test_a_profile_has_the_parts_of_a_step_and_changes_nothing(self, tmp_path: Path) -> None:
        """Of a backend that profiles itself (:mod:`rl_core.contracts.profiling`)."""
        losses = []
        trace = tmp_path / "train-0.trace.json.gz"
        for path in (None, str(trace)):
            with self._policy() as (backend, _):
                if not isinstance(backend, Profiles):
                    return  # it need not
                losses.append([self._train(backend, sequences()).partial["loss"]])
                backend.start_profile(path)
                started = time.perf_counter()
                losses[-1].append(self._train(backend, sequences()).partial["loss"])
                took = time.perf_counter() - started
                parts = backend.stop_profile()
                losses[-1].append(self._train(backend, sequences()).partial["loss"])
            missing = {FORWARD_BACKWARD, OPTIMIZER_PART} - set(parts)
            self.expect(not missing, f"stop_profile reports no seconds for {', '.join(sorted(missing))}")
            self.expect(
                min(parts.values()) > 0 and sum(parts.values()) <= took,
                f"stop_profile reports {dict(parts)} for a call of train that took {took:.3g} s",
            )
        self.expect(losses[0] == losses[1], f"a trace changes the losses: {losses[0]} without, {losses[1]} with it")
        self.expect(trace.is_file(), "stop_profile wrote no trace at the path that start_profile was given")
        events = json.loads(gzip.decompress(trace.read_bytes()))
        self.expect(bool(events), "the trace is empty")

    def test_a_closed_backend_can_be_set_up_again(self) -> None:
        backend = self.build()
        losses = []
        for _ in range(2):
            with set_up(backend):
                LocalModel(backend, POLICY, self.shape.spec(), OPTIMIZER)
                losses.append(self._train(backend, sequences()).partial["loss"])
        self.expect(losses[0] == losses[1], f"the first loss is {losses[0]}, and {losses[1]} after close and setup")

    @contextmanager
    def _policy(self, *, seed: int = 0, **more: int) -> Iterator[tuple[Backend, LocalModel]]:
        """A backend with one trainable model."""
        with set_up(self.build(**more)) as backend:
            yield backend, LocalModel(backend, POLICY, self.shape.spec(seed=seed), OPTIMIZER)

    def _train(
        self, backend: Backend, batch: SequenceBatch, loss: LossSpec = NLL, *, scale: Scale | None = None
    ) -> TrainResult:
        return backend.train("policy", batch, loss, scale or Scale.of(batch))

    def _check_column(self, name: str, values: np.ndarray, batch: SequenceBatch) -> None:
        self.expect(
            values.shape == batch.tokens.shape and values.dtype == np.float32,
            f"{name} are {values.dtype} {list(values.shape)}, expected float32 [{len(batch.tokens)}]",
        )


def sequences() -> SequenceBatch:
    """Four ragged sequences whose second halves are trained on; read-only, as they come out of shared memory."""
    draw = np.random.default_rng(0)
    rows = [draw.integers(2, 32, size=length).astype(np.int32) for length in (5, 12, 3, 9)]
    masks = [np.repeat([0, 1], [len(row) // 2, len(row) - len(row) // 2]).astype(np.float32) for row in rows]
    batch = SequenceBatch.from_lists(rows, token_columns={"loss_mask": masks})
    for array in (batch.tokens, batch.offsets, *batch.token_columns.values()):
        array.flags.writeable = False
    return batch


def read_safetensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder's ``*.safetensors`` (an 8-byte length, a JSON header, the bytes)."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
    found: dict[str, np.ndarray] = {}
    from rl_core.contracts.backend import WeightBucket

    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, about in json.loads(content[8:start]).items():
            if name == "__metadata__":
                continue
            begin, end = about["data_offsets"]
            data = np.frombuffer(content[start + begin : start + end], np.uint8)
            bucket = WeightBucket((name,), (tuple(about["shape"]),), (names[about["dtype"]],), data)
            found |= from_buckets([bucket])
    return found


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a.astype(np.float32), b.astype(np.float32))
