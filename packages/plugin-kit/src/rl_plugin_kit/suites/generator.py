"""Conformance rules for generators (:mod:`rl_core.contracts.generator`), on a tiny model with known weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from rl_core.batch import SequenceBatch
from rl_core.contracts.generation import StreamingGenerator
from rl_core.contracts.generator import Generator, SamplingParams
from rl_core.contracts.profiling import Profiles

from rl_plugin_kit.reference import Weights, log_probs, to_bucket, token_log_probs
from rl_plugin_kit.suites.generator_stream import PROMPTS, SEEDS, VERSION, StreamConformance

SAMPLING = SamplingParams(n=2, max_new_tokens=6, temperature=1.4)
TOKEN_COLUMNS = {"loss_mask": np.float32, "sampled_logprobs": np.float32, "weights_version": np.int32}
SEQUENCE_COLUMNS = {"request": np.int64, "sample": np.int64, "truncated": np.bool_, "prompt_length": np.int64}


class GeneratorConformance(StreamConformance):
    """The batch call of every generator, and the stream of those that have one."""

    kind = "generator"
    contracts = (Generator, StreamingGenerator, Profiles)

    def test_the_batch_has_the_columns_of_the_contract(self) -> None:
        with self._loaded() as generator:
            batch = generator.generate(requests(), SAMPLING)
        for where, columns, expected in (
            ("token", batch.token_columns, TOKEN_COLUMNS),
            ("sequence", batch.sequence_columns, SEQUENCE_COLUMNS),
        ):
            for name, dtype in expected.items():
                self.expect(name in columns, f"generate returns no {where} column {name!r}")
                found = columns[name].dtype
                self.expect(found == dtype, f"the {where} column {name!r} is {found}, expected {np.dtype(dtype)}")
        count = len(PROMPTS) * SAMPLING.n
        self.expect(len(batch) == count, f"generate returns {len(batch)} sequences for 4 requests with n=2")
        order = list(zip(*(batch.sequence_columns[name].tolist() for name in ("request", "sample")), strict=True))
        self.expect(
            order == [(request, sample) for request in range(len(PROMPTS)) for sample in range(SAMPLING.n)],
            f"(request, sample) of the sequences are {order}; they go request by request",
        )

    def test_prompts_are_kept_and_completions_are_marked(self) -> None:
        with self._loaded() as generator:
            batch = generator.generate(requests(), SAMPLING)
        for index in range(len(batch)):
            prompt = PROMPTS[index // SAMPLING.n]
            part, cut = batch.sequence(index), len(prompt)
            self.expect(
                batch.sequence_columns["prompt_length"][index] == cut
                and tuple(batch.tokens[part][:cut].tolist()) == prompt,
                f"sequence {index} does not begin with its prompt {list(prompt)}: {batch.tokens[part].tolist()}",
            )
            mask = batch.token_columns["loss_mask"][part]
            self.expect(
                not mask[:cut].any() and (mask[cut:] == 1).all(),
                f"loss_mask of sequence {index} is {mask.tolist()}; it is 0 on the prompt and 1 on the completion",
            )
            self.expect(
                not batch.token_columns["sampled_logprobs"][part][:cut].any(),
                f"sampled_logprobs of sequence {index} are not 0 on its prompt",
            )

    def test_a_sample_depends_on_its_request_and_seed_alone(self) -> None:
        with self._loaded() as generator:
            together = texts(generator.generate(requests(), SAMPLING))
            again = texts(generator.generate(requests(), SAMPLING))
            alone = texts(generator.generate(requests([1]), SAMPLING))
            turned = texts(generator.generate(requests([3, 2, 1, 0]), SAMPLING))
            first = texts(generator.generate(requests([1]), replace(SAMPLING, n=1)))
        self.expect(together == again, "the same requests with the same seeds give other completions the second time")
        self.expect(together[2:4] == alone, "a request gives other completions alone than in a batch")
        self.expect(together[2:4] == turned[4:6], "the order of requests changes their completions")
        self.expect(first == alone[:1], "the first sample of a request changes with n")
        self.expect(together[::2] != together[1::2], "the two samples of every request are the same")
        self.expect(
            together[:2] != together[4:6], "two requests with the same prompt and different seeds give the same"
        )

    def test_log_probs_are_those_of_the_model_over_the_full_vocabulary(self) -> None:
        for sampling in (SAMPLING, replace(SAMPLING, top_k=3), replace(SAMPLING, top_p=0.8)):
            with self._loaded() as generator:
                batch = generator.generate(requests(), sampling)
            self._check_log_probs(batch, self.shape.weights(1), sampling.temperature, f"with {_filter(sampling)}")

    def test_temperature_0_takes_the_most_likely_token(self) -> None:
        weights = self.shape.weights(1)
        with self._loaded() as generator:
            batch = generator.generate(requests(), replace(SAMPLING, n=1, temperature=0.0))
        for index, tokens in enumerate(texts(batch)):
            likely = log_probs(self.shape, weights, np.array(tokens)).argmax(-1).tolist()
            cut = len(PROMPTS[index])
            self.expect(
                tokens[cut:] == likely[cut - 1 : -1],
                f"at temperature 0 request {index} is completed with {tokens[cut:]}, not {likely[cut - 1 : -1]}",
            )
        self._check_log_probs(batch, weights, 1.0, "at temperature 0")

    def test_completions_end_with_a_stop_token_or_at_their_limit(self) -> None:
        with self._loaded() as generator:
            free = generator.generate(requests(), SAMPLING)
            lengths = (free.lengths - free.sequence_columns["prompt_length"]).tolist()
            self.expect(
                lengths == [SAMPLING.max_new_tokens] * len(free),
                f"without stop tokens completions have {lengths} tokens, not max_new_tokens={SAMPLING.max_new_tokens}",
            )
            self.expect(free.sequence_columns["truncated"].all(), "completions that reach max_new_tokens are truncated")
            stop = int(free.tokens[free.sequence(0)][len(PROMPTS[0]) + 2])
            stopped = generator.generate(requests(), replace(SAMPLING, stop_token_ids=(stop,)))
        for index, (whole, cut) in enumerate(zip(texts(free), texts(stopped), strict=True)):
            start = len(PROMPTS[index // SAMPLING.n])
            ends = stop in whole[start:]
            expected = whole[: whole.index(stop, start) + 1] if ends else whole
            self.expect(cut == expected, f"with the stop token {stop} sequence {index} is {cut}, not {expected}")
            truncated = bool(stopped.sequence_columns["truncated"][index])
            self.expect(
                truncated != ends,
                f"sequence {index} {'ends with a stop token' if ends else 'reaches its limit'} and truncated "
                f"is {truncated}",
            )

    def test_new_weights_take_effect_with_their_version(self) -> None:
        weights = self.shape.weights(2)
        with self._loaded() as generator:
            generator.update_weights([to_bucket(weights)], VERSION + 1)
            batch = generator.generate(requests(), replace(SAMPLING, temperature=1.0))
        versions = sorted(set(batch.token_columns["weights_version"].tolist()))
        self.expect(versions == [VERSION + 1], f"after update_weights(version=8) weights_version is {versions}")
        self._check_log_probs(batch, weights, 1.0, "after update_weights")

    def test_new_weights_are_copied(self) -> None:
        with self._loaded() as generator:
            before = texts(generator.generate(requests(), SAMPLING))
            bucket = to_bucket(self.shape.weights(1))
            generator.update_weights([bucket], VERSION)
            bucket.data[:] = to_bucket(self.shape.weights(2)).data
            after = texts(generator.generate(requests(), SAMPLING))
        self.expect(
            before == after,
            "completions change with the memory of the buckets that update_weights was given, which is used again",
        )

    def test_weights_that_do_not_fit_are_refused_by_name(self) -> None:
        weights = self.shape.weights(1)
        name = "model.norm.weight"
        strange = {**weights, "model.unheard_of.weight": weights[name]}
        short = {**weights, name: weights[name][:-1]}
        for given, listed in ((strange, "model.unheard_of.weight"), (short, name)):
            with self._loaded() as generator:
                try:
                    generator.update_weights([to_bucket(given)], VERSION + 1)
                except ValueError as error:
                    self.expect(listed in str(error), f"update_weights refuses {listed} without naming it: {error}")
                else:
                    what = "a name that the model has not" if given is strange else "a wrong shape"
                    self.expect(False, f"update_weights accepts {what}: {listed}")

    def test_sleeping_and_waking_change_nothing(self) -> None:
        with self._loaded() as generator:
            before = texts(generator.generate(requests(), SAMPLING))
            generator.sleep()
            generator.wake()
            generator.update_weights([to_bucket(self.shape.weights(1))], VERSION)
            after = texts(generator.generate(requests(), SAMPLING))
        self.expect(before == after, "after sleep and wake the same weights give other completions")

    def test_a_profile_changes_nothing(self, tmp_path: Path) -> None:
        """Of a generator that profiles itself (:mod:`rl_core.contracts.profiling`)."""
        trace = tmp_path / "generate-0.trace.json.gz"
        with self._loaded() as generator:
            if not isinstance(generator, Profiles):
                return  # it need not
            before = texts(generator.generate(requests(), SAMPLING))
            generator.start_profile(str(trace))
            during = texts(generator.generate(requests(), SAMPLING))
            parts = generator.stop_profile()
            after = texts(generator.generate(requests(), SAMPLING))
        self.expect(before == during == after, "a trace changes the completions")
        self.expect(min(parts.values(), default=0.0) >= 0, f"stop_profile reports {dict(parts)}, in seconds")
        self.expect(trace.is_file(), "stop_profile wrote no trace at the path that start_profile was given")

    def _check_log_probs(self, batch: SequenceBatch, weights: Weights, temperature: float, where: str) -> None:
        expected, _ = token_log_probs(self.shape, weights, batch, temperature)
        places = np.arange(len(batch.tokens)) - batch.offsets[batch.sequence_ids]
        completion = places >= batch.sequence_columns["prompt_length"][batch.sequence_ids]
        gap = np.abs(batch.token_columns["sampled_logprobs"] - expected * completion).max()
        self.expect(
            gap <= self.tolerance,
            f"sampled_logprobs {where} differ from the model's at temperature {temperature:g} by up to {gap:.3g} "
            f"(allowed: {self.tolerance:g})",
        )


def requests(which: list[int] | None = None) -> SequenceBatch:
    """The prompts with their seeds; read-only, as they come out of shared memory."""
    chosen = range(len(PROMPTS)) if which is None else which
    seeds = np.array([SEEDS[index] for index in chosen], np.int64)
    batch = SequenceBatch.from_lists([PROMPTS[index] for index in chosen], sequence_columns={"seed": seeds})
    for array in (batch.tokens, batch.offsets, seeds):
        array.flags.writeable = False
    return batch


def texts(batch: SequenceBatch) -> list[list[int]]:
    """Tokens of each sequence."""
    return [batch.tokens[batch.sequence(index)].tolist() for index in range(len(batch))]


def _filter(sampling: SamplingParams) -> str:
    return f"top_k={sampling.top_k}, top_p={sampling.top_p:g}"
