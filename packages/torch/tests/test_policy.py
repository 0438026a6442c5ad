"""Model wrappers: outputs in batch order, gradients, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rl_core.batch import SequenceBatch
from rl_core.contracts.model import ModelSpec
from rl_core.errors import EnvironmentProblem
from rl_torch.microbatch import MicroBatch
from rl_torch.models import build_model
from rl_torch.policy import PolicyModel, ScalarModel, check_supported, compute_outputs, wrap_model

torch.set_num_threads(1)


def spec(architecture: str = "qwen2", **extra: object) -> ModelSpec:
    init = {
        "architecture": architecture,
        "hidden_size": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "ffn": 64,
        "extra": extra,
    }
    return ModelSpec(init=init, vocab_size=50, max_length=64, seed=1)


def batch() -> SequenceBatch:
    rng = np.random.default_rng(0)
    lengths = [7, 3, 12, 1]
    return SequenceBatch.from_lists(
        [rng.integers(0, 50, n) for n in lengths],
        token_columns={"loss_mask": [(np.arange(n) > 1).astype(np.float32) for n in lengths]},
    )


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_logprobs_and_parameter_gradients_equal_full_logits(packing: str) -> None:
    data, plain = batch(), build_model(spec(), dtype=torch.float32)
    wrapped = PolicyModel(build_model(spec(), dtype=torch.float32), chunk_tokens=3)
    names = ("logprobs", "entropy", "mean_logprobs", "logsumexp")
    found = compute_outputs(wrapped, MicroBatch.build(data, packing=packing), names, temperature=0.5)
    expected = {name: [] for name in names}
    for i in range(len(data)):
        ids = torch.from_numpy(data.tokens[data.sequence(i)].astype(np.int64))
        mask = torch.from_numpy(data.token_columns["loss_mask"][data.sequence(i)])
        z = plain(ids[None]).logits[0, :-1] / 0.5
        log_p = torch.log_softmax(z, -1)
        values = (log_p.gather(1, ids[1:, None])[:, 0], -(log_p.exp() * log_p).sum(-1), log_p.mean(-1), z.logsumexp(-1))
        for name, value in zip(names, values, strict=True):
            expected[name].append(torch.cat([torch.zeros(1), value]) * mask)
    losses = [torch.zeros(()), torch.zeros(())]
    for power, name in enumerate(names, start=1):
        ours, theirs = getattr(found, name), torch.cat(expected[name])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, msg=name)
        losses = [losses[0] + ours.pow(power).sum(), losses[1] + theirs.pow(power).sum()]
    for loss in losses:
        loss.backward()
    for (name, p), q in zip(plain.named_parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-5 * p.grad.abs().max().item(), msg=name)


def test_values_come_from_the_token_before_and_scores_from_the_last() -> None:
    data, model = batch(), build_model(spec(), dtype=torch.float32, head="scalar")
    torch.nn.init.normal_(model.score.weight)
    found = compute_outputs(wrap_model(model, "scalar"), MicroBatch.build(data), ("values", "scores"))
    for i in range(len(data)):
        ids = torch.from_numpy(data.tokens[data.sequence(i)].astype(np.int64))[None]
        heads = model.score(model.base_model(ids, use_cache=False).last_hidden_state)[0, :, 0]
        mask = torch.from_numpy(data.token_columns["loss_mask"][data.sequence(i)])
        expected = torch.cat([torch.zeros(1), heads[:-1]]) * mask
        torch.testing.assert_close(found.values[data.sequence(i)], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.scores[i], heads[-1], rtol=0, atol=1e-5)
    assert found.logprobs is found.mean_logprobs is found.logsumexp is None


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_a_score_stands_where_transformers_reads_it(packing: str) -> None:
    """At the last token that is not the padding token, which an end token may also be."""
    rows = [[5, 6, 7, 9], [5, 6, 7, 8], [5, 9, 6, 9, 9], [9, 9], [4]]
    model = build_model(spec(), dtype=torch.float32, head="scalar")
    torch.nn.init.normal_(model.score.weight)
    found = {}
    for pad in (9, None):
        model.config.pad_token_id = pad
        micro = MicroBatch.build(SequenceBatch.from_lists(rows), packing=packing)
        found[pad] = compute_outputs(wrap_model(model, "scalar"), micro, ("scores",)).scores
        for row, score in zip(rows, found[pad], strict=True):
            torch.testing.assert_close(score, model(torch.tensor([row])).logits[0, 0], rtol=0, atol=1e-5)
    model.config.pad_token_id = 9
    batch = torch.tensor([row + [9] * (5 - len(row)) for row in rows])
    torch.testing.assert_close(found[9], model(batch).logits[:, 0], rtol=0, atol=1e-5)
    moved = (found[9] - found[None]).abs() > 1e-3
    assert moved.tolist() == [True, False, True, False, False]  # two equal tokens have the same state


@pytest.mark.parametrize(
    ("head", "asked", "message"),
    [
        (
            "lm",
            "values",
            "a model with a 'lm' head computes logprobs, entropy, mean_logprobs and logsumexp, not 'values'",
        ),
        ("scalar", "logprobs", "a model with a 'scalar' head computes values and scores, not 'logprobs'"),
    ],
)
def test_an_output_of_the_other_head_is_refused(head: str, asked: str, message: str) -> None:
    model = wrap_model(build_model(spec(), dtype=torch.float32, head=head), head)
    assert isinstance(model, PolicyModel if head == "lm" else ScalarModel)
    with pytest.raises(ValueError, match="head") as caught:
        compute_outputs(model, MicroBatch.build(batch()), (asked,))
    assert str(caught.value) == message


ARCHITECTURES = ["qwen2", "qwen3", "llama", "mistral", "phi"]
# transformers has no sequence classification for olmo2, so it has no scalar head.
SUPPORTED = [(a, head) for a in ARCHITECTURES for head in ("lm", "scalar")] + [("olmo2", "lm")]


@pytest.mark.parametrize(("architecture", "head"), SUPPORTED)
def test_common_architectures_are_supported(architecture: str, head: str) -> None:
    check_supported(build_model(spec(architecture), dtype=torch.float32, head=head))


@pytest.mark.parametrize(
    ("architecture", "extra"),
    [
        ("gemma2", {"final_logit_softcapping": 1.5, "attn_logit_softcapping": 1.0, "query_pre_attn_scalar": 8}),
        ("recurrent_gemma", {"logits_soft_cap": 1.5, "block_types": ["recurrent", "attention"], "lru_width": 32}),
        ("granite", {"logits_scaling": 8.0}),
        ("hyperclovax", {"logits_scaling": 0.5}),
        ("cohere", {"logit_scale": 0.0625}),
    ],
)
def test_logits_that_an_architecture_scales_or_caps_are_its_own(architecture: str, extra: dict) -> None:
    """Log-probs, entropies and every gradient are those of the logits that transformers returns, at a temperature."""
    extra = {"initializer_range": 0.4, **extra}
    model = build_model(spec(architecture, **extra), dtype=torch.float32)
    data, temperature = batch(), 0.7
    wrapped = wrap_model(model, "lm", transform=check_supported(model).transform)
    rows = MicroBatch.build(data, packing="padded" if architecture == "recurrent_gemma" else "packed")
    found = compute_outputs(wrapped, rows, ("logprobs", "entropy"), temperature=temperature)
    (found.logprobs.sum() + found.entropy.sum()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    total = torch.zeros(())
    for row in range(len(data)):
        ids = torch.from_numpy(data.tokens[data.offsets[row] : data.offsets[row + 1]].astype(np.int64))
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float() / temperature
        log_p = torch.log_softmax(logits, -1)
        own = slice(int(data.offsets[row]) + 2, int(data.offsets[row + 1]))
        expected = log_p.gather(1, ids[1:, None])[1:, 0], -(log_p.exp() * log_p).sum(1)[1:]
        for name, values in zip(("logprobs", "entropy"), expected, strict=True):
            torch.testing.assert_close(getattr(found, name)[own], values, atol=1e-5, rtol=0)
            total = total + values.sum()
    total.backward()
    for name, p in model.named_parameters():
        scale = 1 + float(p.grad.abs().max())
        torch.testing.assert_close(gradients[name], p.grad, atol=2e-5 * scale, rtol=0, msg=name)


def test_logits_that_the_config_does_not_explain_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(spec(), dtype=torch.float32)
    check_supported(model)
    whole = model.forward

    def doubled(**arguments):
        found = whole(**arguments)
        found.logits = found.logits * 2
        return found

    monkeypatch.setattr(model, "forward", doubled)
    with pytest.raises(EnvironmentProblem, match="in a way that is not known here"):
        check_supported(model)


def test_a_cap_is_seen_whatever_its_field_is_called_and_however_small_logits_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_model(spec(), dtype=torch.float32)
    whole = model.forward

    def capped(**arguments):
        found = whole(**arguments)
        found.logits = 50.0 * torch.tanh(found.logits / 50.0)
        return found

    monkeypatch.setattr(model, "forward", capped)
    assert model(input_ids=torch.arange(1, 10)[None]).logits.abs().max() < 1, "small: 50 tanh(1 / 50) is nearly 1"
    with pytest.raises(EnvironmentProblem, match="in a way that is not known here"):
        check_supported(model)


def test_it_is_known_which_architectures_mix_packed_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(spec(), dtype=torch.float32)
    forward = model.base_model.forward
    # As in models that count positions themselves.
    monkeypatch.setattr(model.base_model, "forward", lambda input_ids, position_ids=None, **rest: forward(input_ids))
    assert not check_supported(model).packed
    monkeypatch.undo()
    assert check_supported(model).packed


def test_attention_is_eager_where_pytorchs_own_would_compute_something_else() -> None:
    assert build_model(spec(), dtype=torch.float32).config._attn_implementation == "sdpa"
    for architecture in ("gemma2", "gpt_oss", "mamba"):
        model = build_model(spec(architecture), dtype=torch.float32)
        assert model.config._attn_implementation == "eager"
