"""The fsdp2 and megatron backends give the same first step, for the losses of all algorithms and every layout.

Two processes run the same jobs one after the other, so that libraries are imported once; this file is also
their program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

SHAPE = {"architecture": "qwen3", "hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 64}
CLIP = {"loss": "clip", "clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0}
GRPO = {
    **CLIP,
    "reduction": "token",
    "constant_length": None,
    "kl_coefficient": 0.1,
    "kl_estimator": "k3",
    "entropy_coefficient": 0.01,
    "mismatch": {"correction": "tis", "level": "token", "low": 0.0, "high": 2.0},
    "on_policy": False,
}
LOSSES = {
    "sft": ("rl_algo_sft_rm.losses:negative_log_likelihood", ("logprobs",), {}),
    "smoothed sft": (
        "rl_algo_sft_rm.losses:smoothed_cross_entropy",
        ("logprobs", "mean_logprobs", "logsumexp"),
        {"label_smoothing": 0.1, "z_loss": 0.01},
    ),
    "reward model": ("rl_algo_sft_rm.losses:bradley_terry", ("scores",), {"center_rewards_coefficient": 0.1}),
    "dpo": ("rl_algo_dpo.losses:pair_loss", ("logprobs",), {"loss": "sigmoid", "beta": 0.1}),
    "grpo": ("rl_algo_grpo.loss:policy_loss", ("logprobs", "entropy"), GRPO),
    "value": ("rl_algo_ppo.loss:value_loss", ("values",), {"clip": 0.2}),
}
BACKENDS = {
    "fsdp2": ("fsdp2", {"dp": 2}),
    "dp": ("megatron", {"dp": 2}),
    "tp": ("megatron", {"tp": 2}),
    "tp, sequence": ("megatron", {"tp": 2, "sequence": True}),
    "pp": ("megatron", {"pp": 2}),
}


def batch_of_everything():
    """Twelve sequences in six pairs, with every column that one of the losses reads."""
    from rl_core.batch import SequenceBatch

    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 30, 12)
    columns = {"loss_mask": [(np.arange(n) >= n // 2).astype(np.float32) for n in lengths]}
    for name, (mean, spread) in {
        "advantages": (0, 1),
        "returns": (1, 1),
        "old_values": (0, 0.1),
        "sampled_logprobs": (-4.5, 0.1),
        "old_logprobs": (-4.5, 0.1),
        "ref_logprobs": (-4.5, 0.1),
    }.items():
        columns[name] = [rng.normal(mean, spread, n).astype(np.float32) for n in lengths]
    sequence = {
        "unit": np.arange(12) // 2,
        "chosen": np.arange(12) % 2 == 0,
        "ref_logprob": rng.normal(-50, 5, 12).astype(np.float32),
    }
    tokens = [rng.integers(0, 96, n) for n in lengths]
    return SequenceBatch.from_lists(tokens, token_columns=columns, sequence_columns=sequence)


def reward_model(folder):
    """A reward model whose head is not zero, so that gradients reach the layers under it."""
    import torch
    from rl_core.contracts.model import ModelSpec
    from rl_torch.models import build_model

    model = build_model(ModelSpec(init=SHAPE, vocab_size=96, max_length=64), dtype=torch.float32, head="scalar")
    torch.nn.init.normal_(model.score.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)


def first_step(made, place, loss, model):
    """This rank's partial metrics and the shared ones of one step on half of the batch or all of it."""
    from rl_core.contracts.backend import LossSpec, Scale
    from rl_core.contracts.model import OptimizerSpec, Role

    function, outputs, options = LOSSES[loss]
    head = "scalar" if outputs[0] in ("scores", "values") else "lm"
    made.load(Role("policy", trainable=True, head=head), model[head], OptimizerSpec(learning_rate=1e-3))
    batch = batch_of_everything()
    shard = batch.select(batch.split_balanced(place.dp_size)[place.dp_rank])
    result = made.train("policy", shard, LossSpec(function, options, outputs), Scale.of(batch))
    return {"partial": dict(result.partial), "shared": dict(result.shared), "output": place.is_output}


def main(rank, ports, folder):
    """Run every job on this rank and print the results."""
    import torch
    from rl_backend_fsdp2.backend import Fsdp2Backend
    from rl_backend_fsdp2.config import Fsdp2Config
    from rl_backend_megatron.backend import MegatronBackend
    from rl_backend_megatron.config import MegatronConfig
    from rl_core.contracts.backend import WorkerContext
    from rl_core.contracts.model import ModelSpec

    torch.set_num_threads(1)
    kinds = {"fsdp2": (Fsdp2Backend, Fsdp2Config), "megatron": (MegatronBackend, MegatronConfig)}
    # Transformers does not train the padding token's input embedding, and rollouts may hold that token.
    lm = ModelSpec(init=SHAPE, vocab_size=96, max_length=64, seed=4, special_tokens={"pad_token_id": 5})
    model = {"lm": lm, "scalar": ModelSpec(path=folder, max_length=64)}
    found = {}
    for (label, (name, parallel)), port in zip(BACKENDS.items(), ports, strict=True):
        factory, config = kinds[name]
        made = factory(config(name=name, parallel=parallel, max_tokens_per_microbatch=100))
        place = made.setup(WorkerContext(rank, 2, "127.0.0.1", port))
        found[label] = {loss: first_step(made, place, loss, model) for loss in LOSSES}
        made.close()
    print(json.dumps(found))


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """backend → loss → metrics, reduced over ranks as the controller does."""
    from rl_core.contracts.backend import TrainResult
    from rl_core.model import reduce_metrics
    from rl_ray.ports import free_port

    folder = tmp_path_factory.mktemp("reward-model")
    reward_model(folder)
    ports = ",".join(str(free_port()) for _ in BACKENDS)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(rank), ports, str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    texts = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    ranks = [json.loads(text.splitlines()[-1]) for text in texts]

    def reduced(backend, loss):
        chosen = [rank[backend][loss] for rank in ranks if rank[backend][loss]["output"]]
        return reduce_metrics([TrainResult(partial=c["partial"], shared=c["shared"]) for c in chosen])

    return {backend: {loss: reduced(backend, loss) for loss in LOSSES} for backend in BACKENDS}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("layout", [name for name in BACKENDS if name != "fsdp2"])
def test_the_first_step_has_the_same_loss_gradient_and_metrics(steps, layout, loss):
    expected = steps["fsdp2"][loss]
    assert expected["grad_norm"] > 1e-3
    assert steps[layout][loss] == pytest.approx(expected, rel=1e-5, abs=1e-6)


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(p) for p in sys.argv[2].split(",")], Path(sys.argv[3]).as_posix())
