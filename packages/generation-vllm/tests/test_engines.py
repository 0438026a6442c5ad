"""Engines one after the other in a process: started from a shape or a folder, and with other options."""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sockets
import torch
from rl_core.contracts.backend import WorkerContext
from rl_core.contracts.generator import SamplingParams
from rl_core.contracts.model import ModelSpec
from rl_core.errors import RLError
from rl_generation_vllm.config import VllmConfig
from rl_generation_vllm.generator import VllmGenerator

TOLERANCE = 1e-4


def test_a_model_from_scratch_refuses_requests_until_its_weights_arrive(small):
    built = VllmGenerator(VllmConfig(name="vllm", max_num_seqs=8))
    built.setup(WorkerContext(rank=0, world_size=1, master_address="", master_port=0, threads=1))
    with pytest.raises(RuntimeError) as caught:
        built.generate(small.requests([[1]]), SamplingParams())
    assert str(caught.value) == "generator vllm: no model is loaded; call load first"
    built.load(small.spec(), None)
    with pytest.raises(RuntimeError) as caught:
        built.generate(small.requests([[1]]), SamplingParams())
    assert str(caught.value) == ("generator vllm: the model has no weights, or not all of them; call update_weights")
    built.update_weights(small.buckets(small.spec()), 0)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is asserted
        built.generate(small.requests([[1]]), SamplingParams(stop=("\n", "end")))
    assert str(caught.value) == (
        "sampling: stop strings '\\n', 'end' need a tokenizer to read completions with, and the generator was "
        "loaded without one; pass tokenizer_path (a saved tokenizer folder) to load, or use stop_token_ids"
    )
    built.close()


def test_a_saved_folder_is_served_with_its_own_weights_twice_in_one_process(small, tmp_path):
    model = small.model(small.spec(seed=4))
    model.save_pretrained(tmp_path)
    requests, params = small.requests(small.prompts([4, 40])), SamplingParams(n=2, max_new_tokens=8)
    spec = ModelSpec(path=str(tmp_path), max_length=1000)
    built = small.generator(spec, max_num_seqs=8)
    first = built.generate(requests, params)
    assert small.gap(first, model) < TOLERANCE
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is asserted
        built.generate(small.requests([[1, 2]]), SamplingParams(max_new_tokens=160))
    assert str(caught.value) == (
        "request 0: its prompt of 2 tokens and max_new_tokens 160 make 162 tokens, and the context is 160 "
        "(max_position_embeddings of the model); lower generator.max_new_tokens"
    )
    built.close()
    built.load(replace(spec, max_length=64), None)
    small.assert_same(built.generate(requests, params), first)
    built.close()


def test_bfloat16_weights_are_used_when_asked_for(small):
    built = small.generator(small.spec(), dtype="bfloat16", max_num_seqs=8)
    batch = built.generate(small.requests(small.prompts([4, 9])), SamplingParams(max_new_tokens=5))
    worker = built._loaded.engine._llm.llm_engine.engine_core.engine_core.model_executor.driver_worker
    # But biases: where the CPU has tile instructions (AMX) vLLM's kernels want them in float32.
    kept = worker.worker.model_runner.get_model().named_parameters()
    assert {p.dtype for name, p in kept if not name.endswith(".bias")} == {torch.bfloat16}
    assert batch.token_columns["sampled_logprobs"].dtype == np.float32
    assert 0 < small.gap(batch, small.model(small.spec())) < 0.5
    built.close()


def test_an_engine_may_be_split_over_processes(small):
    spec = small.spec(kv_heads=2)
    built = small.generator(spec, tensor_parallel=2, max_num_seqs=8)
    requests, params = small.requests(small.prompts([4, 70])), SamplingParams(n=2, max_new_tokens=8, temperature=0.7)
    assert small.gap(built.generate(requests, params), small.model(spec), temperature=0.7) < TOLERANCE
    other = replace(spec, seed=1)
    built.update_weights(small.buckets(other), 1)
    assert small.gap(built.generate(requests, params), small.model(other), temperature=0.7) < TOLERANCE
    built.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_an_engine_listens_on_loopback_only_and_meets_by_files_of_its_user_alone(small, processes):
    files = Path(tempfile.gettempdir())
    before = set(files.glob("vllm_dist_*"))
    listening = set(sockets.listening(sockets.tree(os.getpid())))  # a Ray of an earlier test among them
    built = small.generator(small.spec(kv_heads=2), tensor_parallel=processes, max_num_seqs=8)
    opened = set(sockets.listening(sockets.tree(os.getpid()))) - listening
    modes = {stat.S_IMODE(file.stat().st_mode) for file in set(files.glob("vllm_dist_*")) - before}
    built.close()
    assert {socket.address for socket in opened} == {"127.0.0.1"}
    assert modes == {0o600}


def test_the_smallest_cache_gives_the_same_samples(small):
    requests, params = small.requests(small.prompts([20, 30])), SamplingParams(n=3, max_new_tokens=130, temperature=1.5)
    batches = []
    # Six blocks of 16 KiB: five hold the longest sequence. Completions are interrupted for each other and read again.
    for options in ({"kv_cache_bytes": 6 * 2**14}, {}):
        built = small.generator(small.spec(), max_num_seqs=8, **options)
        batches.append(built.generate(requests, params))
        built.close()
    assert batches[0].lengths.tolist() == [150] * 3 + [160] * 3
    small.assert_same(*batches)


def test_a_second_engine_in_a_process_is_refused(small):
    built = small.generator(small.spec(), max_num_seqs=8)
    with pytest.raises(RLError) as caught:
        small.generator(small.spec(), max_num_seqs=8)
    assert str(caught.value) == (
        "generator vllm: this process runs a vLLM engine already, and a second one would break both\n"
        "    close the other generator first, or start this one in a process of its own"
    )
    assert len(built.generate(small.requests([[1]]), SamplingParams(max_new_tokens=1))) == 1
    built.close()


def test_an_engine_takes_most_of_a_gpu_of_its_own_and_leaves_the_larger_part_of_a_shared_one():
    from rl_generation_vllm.engine import default_utilization  # imports vLLM, which setup prepares for

    assert (default_utilization(shares_device=False), default_utilization(shares_device=True)) == (0.9, 0.4)
