"""What holds for every backend on the engine, whatever its strategy.

A backend's tests derive a class and name the layouts in which it must hold::

    class TestMine(EngineSuite):
        under = Under("mine", "rl_backend_mine.backend:MineBackend", "rl_backend_mine.config:MineConfig")
        layouts = {"one rank": On(1), "two ranks": On(2, {"max_tokens_per_microbatch": 60})}

and a fixture ``ranks``: a :class:`rl_torch.engine.testing.ranks.Ranks`, or ``in_this_process`` of that module where
one rank is all there is. The expected numbers come from plain PyTorch and transformers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from rl_core.contracts.backend import LossSpec, Scale, WorkerContext
from rl_core.contracts.model import ModelSpec
from rl_core.errors import RLError
from rl_ray.ports import free_port
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rl_torch.engine.testing import jobs
from rl_torch.engine.testing.examples import (
    NLL,
    NOTHING,
    POLICY,
    REFERENCE,
    SCORES,
    VALUE,
    WITH_ENTROPY,
    model_folder,
    model_spec,
    optimizer_spec,
    plain_model,
    plain_outputs,
    plain_training,
    random_batch,
)
from rl_torch.engine.testing.jobs import On, Under, make_directory, merged, metrics_of, output_ranks, same_weights
from rl_torch.optim import learning_rate
from rl_torch.policy import OUTPUTS
from rl_torch.weights import load_buckets_into

STEPS = 5


class EngineSuite:
    """Attributes:
    under: the backend.
    layouts: in which everything must hold, in float32; a checkpoint of each is read in the next.
    weights_tolerance: largest difference of a weight from plain PyTorch's after five steps.
    """

    under: ClassVar[Under]
    layouts: ClassVar[Mapping[str, On]]
    weights_tolerance: ClassVar[float] = 1e-6

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """A test with the argument ``on`` runs in every layout."""
        if "on" in metafunc.fixturenames:
            metafunc.parametrize("on", self.layouts.values(), ids=list(self.layouts))
        if "moved" in metafunc.fixturenames:
            names = list(self.layouts)
            pairs = list(zip(names, [*names[1:], names[0]], strict=True))
            moved = [(self.layouts[a], self.layouts[b]) for a, b in pairs]
            metafunc.parametrize("moved", moved, ids=[f"{a} to {b}" for a, b in pairs])

    def _do(self, ranks: Any, job: Any, on: On = On(), **options: Any) -> list[Any]:
        return ranks(job, on.world, under=self.under, config={**on.config, **options.pop("config", {})}, **options)

    def _backend(self, **config: Any) -> Any:
        return jobs.backend(self.under, 0, 1, free_port(), **config)

    # A backend's life.

    def test_a_process_can_be_set_up_again_after_close(self, ranks: Any, on: On) -> None:
        for places in self._do(ranks, jobs.two_roles_twice, on, batch=random_batch(4)):
            assert places[0] == places[1]

    def test_set_up_comes_once_and_first(self) -> None:
        made, context = self.under.build(), WorkerContext(0, 1, "127.0.0.1", free_port(), threads=1)
        with pytest.raises(RuntimeError) as caught:
            made.sleep()
        assert str(caught.value) == "the backend is not set up; call setup() first"
        made.setup(context)
        assert torch.get_num_threads() == 1
        with pytest.raises(RuntimeError) as caught:
            made.setup(context)
        assert str(caught.value) == "the backend is set up already; close() it first"
        made.close()
        made.close()

    def test_roles_that_cannot_be_are_refused(self) -> None:
        with self._backend() as made:
            with pytest.raises(ValueError, match="optimizer") as caught:
                made.load(POLICY, model_spec(), None)
            assert str(caught.value) == "role 'policy' is trainable and needs an optimizer"
            made.load(POLICY, model_spec(), optimizer_spec())
            with pytest.raises(ValueError, match="adapter") as caught:
                made.load(replace(REFERENCE, base_of="policy"), model_spec(), None)
            assert str(caught.value) == "role 'reference' is the base of 'policy', which has no adapter"
            with pytest.raises(ValueError, match="critic") as caught:
                made.forward("critic", random_batch(), ("logprobs",), 1.0)
            assert str(caught.value) == "no role 'critic' is loaded; loaded: policy"

    def test_the_model_report_counts_tied_parameters_once_in_every_layout(self, ranks: Any, on: On) -> None:
        for tie in (True, False):
            spec = model_spec(tie=tie)
            expected = sum(p.numel() for p in plain_model(spec).parameters())
            for answer in self._do(ranks, jobs.train, on, batch=random_batch(4), spec=spec, steps=0):
                info = answer["info"]
                assert (info.parameters, info.max_length, info.vocab_size) == (expected, 128, 96)
                assert bool(answer["weights"]) == (answer["rank"] == 0), "only rank 0 streams weights"

    # Forward passes.

    def test_outputs_equal_the_plain_model(self, ranks: Any, on: On, tmp_path: Path) -> None:
        batch, spec = random_batch(15), model_folder(tmp_path)
        answers = self._do(ranks, jobs.forward, on, batch=batch, spec=spec, outputs=OUTPUTS["lm"], temperature=0.8)
        for name, values in plain_outputs(spec, batch, 0.8, OUTPUTS["lm"]).items():
            found = merged(batch, answers, name)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, values, atol=1e-5, err_msg=name)

    def test_scores_come_per_sequence_and_start_at_zero(self, ranks: Any, on: On) -> None:
        batch = random_batch(6)
        answers = self._do(ranks, jobs.forward, on, batch=batch, role=VALUE, outputs=("scores", "values"))
        scores, values = (merged(batch, answers, name) for name in ("scores", "values"))
        assert (scores.shape, values.shape) == ((6,), (len(batch.tokens),))
        assert not scores.any()
        assert not values.any()

    def test_a_forward_pass_sees_the_newest_weights(self, ranks: Any, on: On, tmp_path: Path) -> None:
        folder = make_directory(tmp_path / "saved")
        answers = self._do(ranks, jobs.forward_after_training, on, batch=random_batch(), directory=folder)
        assert any(not np.array_equal(first, second) for first, second, _ in answers)
        for first, _, restored in answers:
            np.testing.assert_array_equal(first, restored)

    def test_an_empty_shard_gives_empty_outputs(self) -> None:
        with self._backend() as made:
            made.load(POLICY, model_spec(), optimizer_spec())
            found = made.forward("policy", random_batch().select([]), ("logprobs",), 1.0)
        assert found["logprobs"].shape == (0,)

    def test_an_output_the_head_does_not_have_is_refused(self) -> None:
        batch = random_batch()
        with self._backend() as made:
            made.load(POLICY, model_spec(), optimizer_spec())
            for ask in (
                lambda: made.forward("policy", batch, ("values",), 1.0),
                lambda: made.train("policy", batch, replace(NLL, outputs=("values",)), Scale.of(batch)),
            ):
                with pytest.raises(ValueError, match="head") as caught:
                    ask()
                assert str(caught.value) == (
                    "a model with a 'lm' head computes logprobs, entropy, mean_logprobs and logsumexp, not 'values'"
                )

    # Training.

    @pytest.mark.parametrize(("architecture", "tie"), [("qwen2", True), ("llama", False)])
    def test_five_steps_equal_plain_pytorch(
        self, ranks: Any, on: On, tmp_path: Path, architecture: str, tie: bool
    ) -> None:
        batch, spec = random_batch(), model_folder(tmp_path, architecture=architecture, tie=tie)
        # With the usual eps Adam makes whole steps of gradients that are rounding errors.
        optimizer = optimizer_spec(learning_rate=3e-3, eps=1e-4, schedule="cosine", warmup_steps=2, total_steps=STEPS)
        expected, parameters = plain_training(spec, optimizer, batch, STEPS)
        answers = self._do(ranks, jobs.train, on, batch=batch, steps=STEPS, spec=spec, optimizer=optimizer)
        for step, (loss, norm) in enumerate(expected):
            metrics = metrics_of(answers, step)
            assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
            assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5 if step == 0 else 1e-4)
            assert metrics["learning_rate"] == learning_rate(optimizer, step)
            assert metrics["tokens"] == pytest.approx(1.0)
            assert metrics["max_length"] == batch.lengths.max()
        assert set(answers[0]["weights"]) == set(parameters)
        for name, parameter in parameters.items():
            found, weight = answers[0]["weights"][name], parameter.detach().numpy()
            np.testing.assert_allclose(found, weight, atol=self.weights_tolerance, err_msg=name)

    def test_loss_and_gradient_do_not_depend_on_layout_or_micro_batches(self, ranks: Any, on: On) -> None:
        batch = random_batch(14)
        (expected, *others) = [
            metrics_of(self._do(ranks, jobs.train, where, batch=batch, loss=WITH_ENTROPY, config=config))
            for where, config in ((On(), {}), (on, {}), (on, {"max_tokens_per_microbatch": 40}))
        ]
        for found in others:
            assert found == pytest.approx(expected, rel=1e-5)

    def test_a_rank_without_data_takes_part(self, ranks: Any, on: On) -> None:
        batch = random_batch(2)  # one unit: only the first data-parallel rank gets something
        expected = self._do(ranks, jobs.train, batch=batch, steps=2)
        answers = self._do(ranks, jobs.train, on, batch=batch, steps=2)
        for answer in output_ranks(answers)[1:]:
            assert answer["results"][0].partial == {"loss": 0.0}
        for step in range(2):
            assert metrics_of(answers, step) == pytest.approx(metrics_of(expected, step), rel=1e-5)

    def test_a_loss_that_is_not_finite_on_one_rank_takes_no_step_on_any(self, ranks: Any, on: On) -> None:
        for poison in (math.nan, math.inf):
            loss = LossSpec(NLL.function, options={"poison": poison})
            answers = self._do(ranks, jobs.train, on, batch=random_batch(), loss=loss)
            assert [a["results"][0].finite for a in answers] == [False] * on.world
            same_weights(answers[0]["weights"], answers[0]["before"])

    def test_the_step_after_a_skipped_one_is_as_if_nothing_had_happened(self) -> None:
        batch = random_batch()
        found = []
        for losses in ((NLL,), (LossSpec(NLL.function, options={"poison": math.nan}), NLL)):
            with self._backend() as made:
                made.load(POLICY, model_spec(), optimizer_spec())
                results = [made.train("policy", batch, loss, Scale.of(batch)) for loss in losses]
            found.append(results)
        assert not found[1][0].finite
        assert found[1][1] == found[0][0]

    def test_training_twice_gives_the_same_bits(self, ranks: Any, on: On) -> None:
        first, second = (self._do(ranks, jobs.train, on, batch=random_batch(), steps=3) for _ in range(2))
        assert [a["results"] for a in first] == [a["results"] for a in second]
        same_weights(second[0]["weights"], first[0]["weights"])

    def test_a_scalar_head_learns_scores_and_values_as_on_one_rank(self, ranks: Any, on: On) -> None:
        batch, slow = random_batch(), optimizer_spec(learning_rate=3e-3)
        single, several = (
            self._do(ranks, jobs.train, where, batch=batch, role=VALUE, loss=SCORES, steps=6, optimizer=slow)
            for where in (On(), on)
        )
        losses = [metrics_of(several, step)["loss"] for step in range(6)]
        at_zero = float((batch.sequence_columns["reward"] ** 2).mean()) + 1.0  # a new head says 0 everywhere
        assert losses[0] == pytest.approx(at_zero, rel=1e-5)
        assert losses[-1] < 0.9 * losses[0]
        for step in range(6):
            assert metrics_of(several, step) == pytest.approx(metrics_of(single, step), rel=1e-4)

    @pytest.mark.parametrize("loss", [NLL, NOTHING], ids=["zero", "nothing"])
    def test_a_batch_without_anything_to_learn_leaves_a_zero_gradient(self, loss: LossSpec) -> None:
        batch = random_batch()
        empty = batch.with_columns(token={"loss_mask": np.zeros(len(batch.tokens), np.float32)})
        with self._backend() as made:
            made.load(POLICY, model_spec(), optimizer_spec())
            result = made.train("policy", empty, loss, Scale.of(batch))
        assert (result.finite, result.shared["grad_norm"], result.partial["loss"]) == (True, 0.0, 0.0)

    def test_evaluation_gives_the_training_loss_and_changes_nothing(self, ranks: Any, on: On) -> None:
        batch = random_batch()
        idle = self._do(ranks, jobs.train, on, batch=batch, steps=0)
        metrics = metrics_of(self._do(ranks, jobs.train, on, batch=batch))
        evaluated = metrics_of([{**a, "results": [a["evaluated"]]} for a in idle])
        assert evaluated == pytest.approx({k: v for k, v in metrics.items() if k in evaluated}, rel=1e-6)
        assert idle[0]["evaluated"].shared == {}
        same_weights(idle[0]["weights"], idle[0]["before"])

    def test_a_frozen_role_cannot_be_trained(self) -> None:
        batch = random_batch()
        with self._backend() as made:
            made.load(REFERENCE, model_spec(), None)
            with pytest.raises(ValueError, match="without an optimizer") as caught:
                made.train("reference", batch, NLL, Scale.of(batch))
        assert str(caught.value) == "role 'reference' was loaded without an optimizer, so it cannot be trained"

    # Checkpoints.

    def test_a_restored_run_continues_bit_exactly(self, ranks: Any, on: On, tmp_path: Path) -> None:
        given: dict[str, Any] = {"batch": random_batch(), "optimizer": optimizer_spec(schedule="linear", total_steps=5)}
        folder = make_directory(tmp_path / "policy")
        whole = self._do(ranks, jobs.train, on, steps=5, **given)
        self._do(ranks, jobs.train, on, steps=3, save=folder, **given)
        rest = self._do(ranks, jobs.train, on, steps=2, restore=folder, **given)
        for a, b in zip(whole, rest, strict=True):
            assert a["results"][3:] == b["results"]
            np.testing.assert_array_equal(a["random"], b["random"])
        same_weights(rest[0]["weights"], whole[0]["weights"])

    def test_a_checkpoint_is_read_in_another_layout(self, ranks: Any, moved: tuple[On, On], tmp_path: Path) -> None:
        old, new = moved
        given: dict[str, Any] = {"batch": random_batch(), "optimizer": optimizer_spec(eps=1e-6)}
        folder = make_directory(tmp_path / "policy")
        saved = self._do(ranks, jobs.train, old, steps=3, save=folder, **given)
        whole = self._do(ranks, jobs.train, old, steps=5, **given)
        rest = self._do(ranks, jobs.train, new, steps=2, restore=folder, **given)
        same_weights(rest[0]["before"], saved[0]["weights"])
        for step in range(2):
            assert metrics_of(rest, step) == pytest.approx(metrics_of(whole, 3 + step), rel=1e-4)
        for name, weight in whole[0]["weights"].items():
            # A moment in the wrong place would show as 1e-2, the learning rate.
            np.testing.assert_allclose(rest[0]["weights"][name], weight, atol=1e-4, err_msg=name)

    def test_a_new_config_changes_hyperparameters_on_resume(self, ranks: Any, tmp_path: Path) -> None:
        batch, folder = random_batch(), make_directory(tmp_path / "policy")
        self._do(ranks, jobs.train, batch=batch, steps=1, save=folder)
        slower = optimizer_spec(learning_rate=0.0, weight_decay=0.0)
        (rest,) = self._do(ranks, jobs.train, batch=batch, steps=1, restore=folder, optimizer=slower)
        same_weights(rest["weights"], rest["before"])
        (as_before,) = self._do(ranks, jobs.train, batch=batch, steps=1, restore=folder)
        assert any((as_before["weights"][name] != weight).any() for name, weight in as_before["before"].items())

    def test_a_background_save_is_of_the_moment_it_was_asked_for(self, ranks: Any, on: On, tmp_path: Path) -> None:
        folders = [make_directory(tmp_path / name) for name in ("policy", "value")]
        for found in self._do(ranks, jobs.save_and_go_on, on, batch=random_batch(), directories=folders):
            assert found["restored"] == found["at once"]

    @pytest.mark.parametrize("background", [False, True])
    def test_a_disk_that_is_full_on_one_rank_is_told_to_the_run_and_training_goes_on(
        self, ranks: Any, on: On, tmp_path: Path, background: bool
    ) -> None:
        folders = [make_directory(tmp_path / name) for name in ("first", "second")]
        config = {"async_save": background}
        said = self._do(ranks, jobs.save_without_room, on, batch=random_batch(), directories=folders, config=config)
        full = f"cannot write {folders[0]}/shards/rank-00000-000.safetensors: No space left on device"
        # In the background a rank hears of its own trouble only; the run asks all of them.
        others = ["saved" if background else full, "saved"]
        assert said == [[full, "saved"], *[others] * (on.world - 1)]

    def test_a_folder_without_a_checkpoint_or_of_another_format_is_refused(self, tmp_path: Path) -> None:
        name = self.under.name
        with self._backend() as made:
            made.load(POLICY, model_spec(), optimizer_spec())
            with pytest.raises(RLError) as caught:
                made.restore("policy", str(tmp_path))
            assert str(caught.value) == f"{tmp_path} holds no {name} checkpoint (no role.json)"
            facts = tmp_path / "role.json"
            facts.write_text(json.dumps({"format": 7, "role": "policy", "steps": 1, "ranks": 1}))
            with pytest.raises(RLError) as caught:
                made.restore("policy", str(tmp_path))
        assert str(caught.value) == f"{facts}: checkpoint format 7, this version of rl-backend-{name} reads 2"

    def test_two_roles_do_not_share_a_checkpoint_folder(self, tmp_path: Path) -> None:
        with self._backend() as made:
            made.load(POLICY, model_spec(), optimizer_spec())
            made.load(VALUE, model_spec(), optimizer_spec())
            made.save("policy", str(tmp_path))
            with pytest.raises(RLError) as caught:
                made.save("value", str(tmp_path))
            assert str(caught.value) == f"{tmp_path} already holds another role's checkpoint; save 'value' elsewhere"
            with pytest.raises(RLError) as caught:
                made.restore("value", str(tmp_path))
            assert str(caught.value) == f"{tmp_path} holds the role 'policy', not 'value'"

    def test_a_checkpoint_with_an_adapter_is_refused_by_a_run_without_one(self, tmp_path: Path) -> None:
        with self._backend() as made:
            made.load(POLICY, model_spec(), optimizer_spec())
            made.save("policy", str(tmp_path))
            facts = json.loads((tmp_path / "role.json").read_text())
            (tmp_path / "role.json").write_text(json.dumps({**facts, "adapter": "lora"}))
            with pytest.raises(RLError) as caught:
                made.restore("policy", str(tmp_path))
        assert str(caught.value) == (
            f"{tmp_path} was saved with a lora adapter, this run has none\n"
            "    resume with the model.adapter of that run"
        )

    # Exports and weights.

    @pytest.mark.parametrize("tie", [True, False])
    def test_an_export_loads_bit_equal_in_transformers_and_can_be_trained_on(
        self, ranks: Any, on: On, tmp_path: Path, tie: bool
    ) -> None:
        folder = make_directory(tmp_path / "export")
        trained = self._do(
            ranks, jobs.train, on, batch=random_batch(), steps=2, spec=model_spec(tie=tie), export=folder
        )
        config = json.loads((tmp_path / "export" / "config.json").read_text())
        assert (config["architectures"], config["dtype"]) == (["Qwen2ForCausalLM"], "float32")
        assert (config["use_cache"], config["tie_word_embeddings"]) == (True, tie)
        model = AutoModelForCausalLM.from_pretrained(folder)
        same_weights({n: p.detach().numpy() for n, p in model.named_parameters()}, trained[0]["weights"])
        again = self._do(ranks, jobs.train, on, batch=random_batch(), steps=0, spec=ModelSpec(path=folder))
        same_weights(again[0]["before"], trained[0]["weights"])

    def test_a_reward_model_export_keeps_its_head(self, ranks: Any, on: On, tmp_path: Path) -> None:
        folder = make_directory(tmp_path / "export")
        given: dict[str, Any] = {"role": VALUE, "loss": SCORES}
        trained = self._do(ranks, jobs.train, on, batch=random_batch(), steps=2, export=folder, **given)[0]["weights"]
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        assert model.config.num_labels == 1
        np.testing.assert_array_equal(model.score.weight.detach().numpy(), trained["score.weight"])
        assert trained["score.weight"].any()
        again = self._do(ranks, jobs.train, on, batch=random_batch(), steps=0, spec=ModelSpec(path=folder), **given)
        same_weights(again[0]["before"], trained)

    def test_streamed_weights_fit_another_model_and_do_not_change_when_training_goes_on(self) -> None:
        other, batch = plain_model(model_spec(seed=9)), random_batch()
        with self._backend() as made:
            made.load(POLICY, model_spec(), optimizer_spec())
            buckets = list(made.weights("policy"))
            made.train("policy", batch, NLL, Scale.of(batch))
        load_buckets_into(other, buckets)
        for a, b in zip(other.parameters(), plain_model(model_spec()).parameters(), strict=True):
            assert torch.equal(a, b)
