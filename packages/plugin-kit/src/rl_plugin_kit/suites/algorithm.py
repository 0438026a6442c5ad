"""Conformance rules for algorithms (:mod:`rl_core.contracts.algorithm`), on an installed backend in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from rl_core.batch import SequenceBatch
from rl_core.contracts.algorithm import Algorithm, BatchPlan
from rl_core.contracts.data import Row
from rl_core.data.feed import join_rows
from rl_core.errors import DataError

from rl_plugin_kit.letters import LetterTokenizer
from rl_plugin_kit.local_model import LocalModel, same_weights, set_up
from rl_plugin_kit.reference import TinyShape
from rl_plugin_kit.rows import questions
from rl_plugin_kit.suites.base import ComponentConformance

GROUPS = 4
SHAPE = TinyShape(vocab_size=LetterTokenizer.vocab_size)


class AlgorithmConformance(ComponentConformance):
    """Attributes:
    backend: which installed backend its models run on; by default the first.
    rows: examples it can be trained on; by default questions with prompt, completion, chosen, rejected and label.
    """

    kind = "algorithm"
    contracts = (Algorithm,)
    backend: ClassVar[str] = ""
    rows: ClassVar[Sequence[Row]] = tuple(questions())

    def test_its_roles_can_be_built(self) -> None:
        algorithm = self.build()
        roles = list(algorithm.roles())
        names = [role.name for role in roles]
        self.expect(len(set(names)) == len(names), f"two of its roles have the same name: {', '.join(names)}")
        self.expect(any(role.trainable for role in roles), "none of its roles is trainable")
        for role in roles:
            if role.trainable:
                spec = algorithm.optimizer(role.name, 10)
                self.expect(
                    spec.learning_rate >= 0 and spec.total_steps == 10,
                    f"optimizer({role.name!r}, 10) is for {spec.total_steps} steps: {spec}",
                )

    def test_its_plan_is_that_of_its_config(self) -> None:
        plan, declared = self.build().plan(), self.config().plan()
        self.expect(isinstance(plan, BatchPlan), f"plan() returned {type(plan).__name__}, not a BatchPlan")
        self.expect(
            plan == declared, f"plan() is {plan}, and that of the config, which `rl check` shows, is {declared}"
        )
        counts = (plan.rows_per_step, plan.group_size, plan.optimizer_steps)
        self.expect(min(counts) >= 1, f"a step has at least one row, completion and optimizer step: {plan}")

    def test_a_row_without_columns_is_named(self) -> None:
        algorithm = self.build()
        if algorithm.plan().input != "examples":
            return  # it learns from rollouts and encodes no rows
        try:
            algorithm.encode([{"__where__": "rows.jsonl:7"}], LetterTokenizer())
        except DataError as error:
            self.expect("rows.jsonl:7" in str(error), f"the DataError does not say where the row is: {error}")
        else:
            self.expect(False, "encode accepts a row without any column")

    def test_a_step_trains_and_returns_finite_metrics(self, tmp_path: Path) -> None:
        with self._stage(tmp_path) as (algorithm, models):
            policy = models[_policy(algorithm)]
            before = policy.weights()
            metrics = algorithm.step(self._batch(algorithm, models), models)
            after = policy.weights()
        self.check_metrics(metrics, "step")
        self.expect("train/loss" in metrics, f"step returned no train/loss: {', '.join(sorted(metrics))}")
        self.expect(not same_weights(before, after), "step left the weights of its first trainable role as they were")

    def test_evaluating_returns_finite_metrics_and_trains_nothing(self, tmp_path: Path) -> None:
        with self._stage(tmp_path) as (algorithm, models):
            if algorithm.plan().input != "examples":
                return  # it learns from rollouts: evaluators sample instead
            policy = models[_policy(algorithm)]
            before = policy.weights()
            metrics = algorithm.evaluate(self._batch(algorithm, models), models)
            after = policy.weights()
        self.check_metrics(metrics, "evaluate")
        odd = [name for name in metrics if not name.startswith("eval/")]
        self.expect(not odd, f"evaluate returned {', '.join(odd)}; its metrics begin with 'eval/'")
        self.expect(same_weights(before, after), "evaluate changed the weights")

    def test_it_keeps_whole_groups(self, tmp_path: Path) -> None:
        with self._stage(tmp_path) as (algorithm, models):
            if not algorithm.plan().max_resample_rounds:
                return  # nothing asks it
            batch = self._batch(algorithm, models)
            kept = algorithm.keep(batch)
        self.expect(
            kept.shape == (len(batch),) and kept.dtype == bool,
            f"keep returned {kept.dtype} {list(kept.shape)}, expected bool [{len(batch)}]",
        )
        groups = batch.sequence_columns["group"]
        split = [int(one) for one in np.unique(groups) if len(set(kept[groups == one].tolist())) > 1]
        self.expect(not split, f"keep takes part of group {split[:1]}; it decides on whole groups")

    def test_a_resumed_training_takes_the_same_steps(self, tmp_path: Path) -> None:
        with self._stage(tmp_path) as (algorithm, models):
            algorithm.step(self._batch(algorithm, models), models)
            state = self._json(algorithm.state())
            for name in _trainable(algorithm):
                (tmp_path / name).mkdir()
                models[name].save(str(tmp_path / name))
            batch = self._batch(algorithm, models, number=1)  # statistics that are lost would come back with the same
            expected = dict(algorithm.step(batch, models))
            weights = models[_policy(algorithm)].weights()
        with self._stage(tmp_path) as (algorithm, models):
            algorithm.load_state(state)
            self.expect(
                self._json(algorithm.state()) == state,
                f"after load_state({state}) state() is {self._json(algorithm.state())}",
            )
            for name in _trainable(algorithm):
                models[name].restore(str(tmp_path / name))
            found = dict(algorithm.step(batch, models))
            resumed = models[_policy(algorithm)].weights()
        differ = self._differing(found, expected)
        self.expect(not differ, f"after a resume the next step returns another {', '.join(differ)}; see state()")
        self.expect(same_weights(weights, resumed), "after a resume the next step leads to other weights; see state()")

    @contextmanager
    def _stage(self, folder: Path) -> Iterator[tuple[Algorithm, dict[str, Any]]]:
        """The algorithm with its models, as at the beginning of a stage."""
        algorithm = self.build()
        own = [role.name for role in algorithm.roles() if role.path]
        if own:
            pytest.skip(f"its role {own[0]} has a model of its own; the tiny run checks that")
        with set_up(self._backend()) as backend:
            models: dict[str, Any] = {
                role.name: LocalModel(
                    backend,
                    role,
                    SHAPE.spec(),
                    algorithm.optimizer(role.name, 10 * algorithm.plan().optimizer_steps) if role.trainable else None,
                )
                for role in algorithm.roles()
            }
            algorithm.start(str(folder))
            yield algorithm, models

    def _backend(self) -> Any:
        registry = self.registry
        for registered in registry.components("backend"):
            component = registered.component
            if component.name == self.backend or (not self.backend and not registry.missing_imports(component)):
                config = registry.resolve(component.config)(name=component.name)
                return registry.resolve(component.factory)(config)
        raise AssertionError(f"{self.label} needs a training backend to compute its loss: pip install rl-backend-fsdp2")

    def _batch(self, algorithm: Algorithm, models: Mapping[str, Any], *, number: int = 0) -> SequenceBatch:
        """A step's batch, smaller than planned; read-only, as it comes out of shared memory. Another for each number.

        Numbers 0 and 1 have no row in common, where there are two.
        """
        plan = algorithm.plan()
        if plan.input == "examples":
            count = min(plan.rows_per_step, 2 * GROUPS, max(1, len(self.rows) // 2))
            rows = self.rows[number * count :][:count] or self.rows
            batch = join_rows([algorithm.encode([row], LetterTokenizer()) for row in rows])
            self.expect(len(batch), f"encode makes no sequence of {len(rows)} rows")
            batch = batch.with_columns(sequence={"row": np.arange(len(batch))})
        else:
            batch = rollouts(models[_policy(algorithm)], groups=GROUPS, size=plan.group_size, seed=number)
        for column in (batch.tokens, *batch.token_columns.values(), *batch.sequence_columns.values()):
            column.flags.writeable = False
        return batch

    def _differing(self, found: Mapping[str, float], expected: Mapping[str, float]) -> list[str]:
        return [
            f"{name} ({found.get(name)}, not {value})"
            for name, value in expected.items()
            if repr(found.get(name)) != repr(value)
        ]

    def _json(self, state: Any) -> Any:
        try:
            return json.loads(json.dumps(state))
        except TypeError as error:
            raise AssertionError(f"{self.label}: state() cannot be written as JSON: {error}") from error


def rollouts(policy: Any, *, groups: int, size: int, seed: int = 0) -> SequenceBatch:
    """Completions of 1 to 4 tokens with all columns of the contract, their log-probs taken from ``policy``."""
    draw = np.random.default_rng(3 + seed)
    prompts = [draw.integers(2, 40, size=3) for _ in range(groups)]
    tails = [draw.integers(2, 40, size=draw.integers(1, 5)) for _ in range(groups * size)]
    rows = [np.concatenate([prompts[index // size], tail]) for index, tail in enumerate(tails)]
    masks = [np.repeat([0.0, 1.0], [3, len(tail)]).astype(np.float32) for tail in tails]
    request = np.repeat(np.arange(groups, dtype=np.int64), size)
    batch = SequenceBatch.from_lists(
        rows,
        token_columns={"loss_mask": masks, "weights_version": [np.zeros(len(row), np.int32) for row in rows]},
        sequence_columns={
            "request": request,
            "group": request,
            "sample": np.tile(np.arange(size, dtype=np.int64), groups),
            "truncated": np.array([len(tail) == 4 for tail in tails]),
            "prompt_length": np.full(len(rows), 3, np.int64),
            "temperature": np.ones(len(rows), np.float32),
            # The last group has no gradient: all its rewards are equal.
            "reward": np.where(request == groups - 1, 0.0, draw.integers(0, 2, len(rows))).astype(np.float32),
        },
    )
    return batch.with_columns(token={"sampled_logprobs": policy.forward(batch)["logprobs"]})


def _trainable(algorithm: Algorithm) -> list[str]:
    return [role.name for role in algorithm.roles() if role.trainable]


def _policy(algorithm: Algorithm) -> str:
    return _trainable(algorithm)[0]
