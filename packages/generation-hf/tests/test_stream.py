"""The generator as a stream: requests from any thread, completions in any event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from rl_core.contracts.generation import GenerationRequest, Sampling, StreamingGenerator
from rl_core.contracts.generator import SamplingParams
from rl_core.errors import RLError
from rl_generation_hf import engine_thread
from rl_torch.models import build_model
from rl_torch.weights import to_buckets

SHORT = Sampling(temperature=0.9, max_new_tokens=8)
LONG = Sampling(temperature=0.9, max_new_tokens=400)
PATIENCE_S = 30


def request(id="a", prompt=(1, 2, 3), sampling=SHORT, **fields):
    return GenerationRequest(id, np.array(prompt, np.int32), sampling, **fields)


def completions(results):
    """All of a stream, in its order."""

    async def collected():
        return [completion async for completion in results]

    return asyncio.run(asyncio.wait_for(collected(), PATIENCE_S))


@pytest.fixture
def generator(small):
    made = small.generator(small.spec(max_length=512))
    yield made
    made.close()


def buckets_of(spec):
    return list(to_buckets(build_model(spec, dtype=torch.float32).state_dict().items()))


def error_of(call, kind=ValueError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def test_it_is_a_streaming_generator(generator):
    assert isinstance(generator, StreamingGenerator)
    assert generator.wants == {"prompt_logprobs", "top_logprobs"}


def test_completions_come_as_they_finish(generator):
    lengths = [6, 2, 4]
    asked = [request(str(n), sampling=replace(SHORT, max_new_tokens=n)) for n in lengths]
    found = completions(generator.submit(asked))
    assert [completion.id for completion in found] == ["2", "4", "6"]
    assert [len(completion.tokens) for completion in found] == [2, 4, 6]


def test_no_requests_give_an_empty_stream(generator):
    assert completions(generator.submit([])) == []


def test_a_batch_call_is_the_same_requests_submitted_at_once(generator, small):
    prompts, seeds = small.prompts([4, 9, 6]), [5, -1, 2**62]
    params = SamplingParams(n=2, temperature=0.9, max_new_tokens=8)
    batch = generator.generate(small.requests(prompts, seeds=seeds), params)
    asked = [
        request(f"{i}/{k}", prompt, seed=seed, sample=k)
        for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        for k in range(2)
    ]
    found = {completion.id: completion for completion in completions(generator.submit(asked))}
    for index, (tokens, one) in enumerate(zip(small.completions(batch), asked, strict=True)):
        assert tokens == found[one.id].tokens.tolist()
        sampled = batch.token_columns["loss_mask"][batch.sequence(index)] > 0
        logprobs = batch.token_columns["sampled_logprobs"][batch.sequence(index)][sampled]
        assert logprobs.tobytes() == found[one.id].logprobs.tobytes()


def test_submissions_of_several_threads_each_get_their_own(generator, small):
    alone = {}
    for prompt in range(4):
        (alone[prompt],) = completions(generator.submit([request(prompt=(prompt, 5))]))
    found = {}

    def client(prompt):
        found[prompt] = completions(generator.submit([request(f"client {prompt}", (prompt, 5))]))

    threads = [threading.Thread(target=client, args=(prompt,)) for prompt in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    for prompt, (completion,) in found.items():
        assert completion.tokens.tolist() == alone[prompt].tokens.tolist()
        np.testing.assert_allclose(completion.logprobs, alone[prompt].logprobs, atol=small.rounding / 0.9)
    assert len(found) == 4


def test_a_batch_call_and_a_stream_share_the_engine(generator, small):
    stream = generator.submit([request(sampling=LONG)])
    requests, params = small.requests(small.prompts([4, 7])), SamplingParams(n=2, max_new_tokens=6)
    batch = generator.generate(requests, params)
    (completion,) = completions(stream)
    assert len(completion.tokens) == 400
    small.assert_same(batch, generator.generate(requests, params))


def test_an_aborted_request_ends_with_the_tokens_it_has(generator):
    (whole,) = completions(generator.submit([request(sampling=LONG)]))
    stream = generator.submit([request(sampling=LONG), request("b", (4, 5))])
    generator.abort(["a", "unknown"])
    found = {completion.id: completion for completion in completions(stream)}
    assert found["a"].finish == "abort"
    got = found["a"].tokens.tolist()
    assert len(got) < 400
    assert got == whole.tokens.tolist()[: len(got)]
    assert found["b"].finish == "length"


def test_nothing_is_sampled_while_paused_and_everything_afterwards(generator):
    (expected,) = completions(generator.submit([request()]))
    generator.pause()
    forwards = []
    generator._loaded.engine.model.get_input_embeddings().register_forward_pre_hook(lambda *_: forwards.append(1))
    stream = generator.submit([request()])
    time.sleep(0.2)
    assert forwards == []
    generator.resume()
    (completion,) = completions(stream)
    assert completion.tokens.tolist() == expected.tokens.tolist()


def test_new_weights_take_over_while_a_request_is_in_flight_and_paused(generator, small):
    stream = generator.submit([request(sampling=LONG)])
    generator.pause()
    generator.update_weights(buckets_of(small.spec(seed=1, max_length=512)), 4)
    generator.resume()
    (completion,) = completions(stream)
    versions = completion.weights_version.tolist()
    assert versions == sorted(versions)
    assert set(versions) <= {0, 4}
    assert versions[-1] == 4


def test_an_id_that_is_in_flight_is_refused_and_nothing_of_its_submission_is_queued(generator):
    generator.pause()
    first = generator.submit([request("a")])
    for asked in ([request("b"), request("a")], [request("b"), request("b")]):
        message = error_of(lambda asked=asked: generator.submit(asked))
        assert message == f"request {asked[1].id}: a request with this id is in flight; ids are unique"
    second = generator.submit([request("b")])
    generator.resume()
    assert len(completions(first)) == len(completions(second)) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"want": frozenset(["routing", "top_logprobs"])},
            "request a wants routing, which this generator does not give for this model; it gives prompt_logprobs, "
            "top_logprobs",
        ),
        ({"media": ("a picture",)}, "request a: generator hf reads text alone, and it has media"),
        ({"sampling": Sampling(top_p=0.0)}, "request a: sampling: top_p is 0.0; it must be above 0 and at most 1"),
        (
            {"prompt": ()},
            "request a has an empty prompt; a prompt needs at least one token, for example the beginning-of-sequence "
            "token",
        ),
        (
            {"prompt": (1, 48)},
            "request a holds token id 48, and the model's vocabulary has 48 entries; the tokenizer and the model do "
            "not belong together",
        ),
        (
            {"sampling": Sampling(max_new_tokens=510)},
            "request a: its prompt of 3 tokens and max_new_tokens 510 make 513 tokens, and the context is 512 "
            "(model.max_length); lower generator.max_new_tokens, or raise model.max_length, or leave out prompts of "
            "more than 2 tokens",
        ),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_by_its_id(fields, message, generator):
    assert error_of(lambda: generator.submit([request("b"), request(**fields)])) == message
    assert len(completions(generator.submit([request("b")]))) == 1


def test_tokens_of_another_type_are_refused(generator):
    asked = replace(request(), tokens=np.zeros((1, 2), np.int64))
    assert error_of(lambda: generator.submit([asked])) == "request a: its tokens are int64 [1, 2], not int32 [P]"


def test_logits_that_are_not_finite_are_an_error_of_the_request(generator, small):
    state = build_model(small.spec(max_length=512), dtype=torch.float32).state_dict()
    damaged = {name: torch.full_like(tensor, torch.nan) for name, tensor in state.items()}
    generator.update_weights(list(to_buckets(damaged.items())), 3)
    assert error_of(lambda: completions(generator.submit([request("mine")])), RLError) == (
        "generator hf: request mine: the model's logits are not finite at completion token 0 "
        "(weights version 3); the policy has diverged or its weights are damaged: "
        "go back to a checkpoint and lower algorithm.learning_rate"
    )


def test_an_error_of_a_step_reaches_everyone_in_flight_and_the_next_request_is_answered(generator, small):
    expected = completions(generator.submit([request()]))[0].tokens.tolist()
    embeddings = generator._loaded.engine.model.get_input_embeddings()
    hook = embeddings.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    generator.pause()
    first, second = generator.submit([request("a")]), generator.submit([request("b"), request("c")])
    generator.resume()
    for stream in (first, second):
        assert error_of(lambda stream=stream: completions(stream), RuntimeError) == "out of memory"
    message = error_of(lambda: generator.generate(small.requests([[1]]), SamplingParams()), RuntimeError)
    assert message == "out of memory"
    hook.remove()
    assert completions(generator.submit([request()]))[0].tokens.tolist() == expected


def test_sleep_with_requests_in_flight_is_refused(generator):
    generator.pause()
    stream = generator.submit([request("a"), request("b")])
    assert error_of(generator.sleep, RuntimeError) == (
        "generator hf: 2 requests are in flight; abort them before sleep"
    )
    generator.abort()
    assert [completion.finish for completion in completions(stream)] == ["abort", "abort"]
    generator.sleep()
    generator.resume()


def test_a_closed_generator_fails_what_is_in_flight(small):
    generator = small.generator()
    generator.pause()
    stream = generator.submit([request()])
    generator.close()
    assert error_of(lambda: completions(stream), RuntimeError) == (
        "generator hf: it was closed while requests were in flight"
    )
    assert error_of(lambda: generator.submit([request()]), RuntimeError) == (
        "generator hf: no model is loaded; call load first"
    )


def test_without_work_no_thread_is_left(small, monkeypatch):
    monkeypatch.setattr(engine_thread, "_LINGERS_S", 0.05)
    generator = small.generator()
    for _ in range(2):
        before = set(threading.enumerate())
        assert len(completions(generator.submit([request()]))) == 1
        (thread,) = set(threading.enumerate()) - before
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
