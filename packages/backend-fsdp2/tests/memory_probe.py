"""Peak memory of real training, measured in a process of its own: ``python memory_probe.py RANK WORLD PORT < cases``.

What is measured is the growth of the resident set between a process that has imported everything, joined its process
group and trained a tiny model (which loads the code of every library into memory), and the largest moment of loading
and two training steps. The first of them is short: it only has to create the optimizer's states. The caller sets
``MALLOC_MMAP_THRESHOLD_``, so that every tensor of more than 64 KiB is given back to the system when it is freed:
glibc would keep it for later, which is not memory that training needs.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fsdp2_helpers import NLL
from rl_backend_fsdp2.backend import Fsdp2Backend
from rl_backend_fsdp2.config import Fsdp2Config
from rl_core.batch import SequenceBatch
from rl_core.contracts.backend import LossSpec, Scale, WorkerContext
from rl_core.contracts.model import AdapterSpec, ModelSpec, OptimizerSpec, Role

VALUES = LossSpec("memory_probe:squared_values", outputs=("values",))
TINY = {"hidden_size": 64, "heads": 2, "kv_heads": 2, "layers": 1, "ffn": 64}


def squared_values(outputs: Any, batch: Any, scale: Scale) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Regress every value on 1."""
    return ((outputs.values - 1).square() * batch["loss_mask"]).sum() / scale.tokens, {}


def main(rank: int, world: int, port: int) -> None:
    """Print the peak of each case in bytes, as a JSON list."""
    torch.set_num_threads(1)
    peaks = []
    for index, case in enumerate(json.load(sys.stdin)):
        made = Fsdp2Backend(Fsdp2Config(name="fsdp2", **case["config"]))
        made.setup(WorkerContext(rank, world, "127.0.0.1", port + index, threads=1))
        try:
            tiny = {**case, "init": {**case["init"], **TINY}, "vocab": 64, "sequences": 4, "length": 16}
            train(made, tiny, rank, world)
            forget(made)
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
            train(made, case, rank, world)
            peaks.append(resident("VmHWM") - before)
        finally:
            made.close()
    print(json.dumps(peaks))


def train(made: Fsdp2Backend, case: dict[str, Any], rank: int, world: int) -> None:
    """Load the roles and take two steps; frozen roles compute log-probs before each."""
    adapter = AdapterSpec(**case["adapter"]) if case["adapter"] else None
    spec = ModelSpec(init=case["init"], vocab_size=case["vocab"], max_length=4096)
    roles = [Role(**role) for role in case["roles"]]
    for role in roles:
        own = ModelSpec(**{**spec.__dict__, "adapter": adapter if role.trainable else None})
        made.load(role, own, OptimizerSpec(1e-3) if role.trainable else None)
    batches = [random_batch(n, length, case["vocab"]) for n, length in ((2, 8), (case["sequences"], case["length"]))]
    outputs = ("logprobs", "entropy") if case["entropy"] else ("logprobs",)
    losses = {"lm": LossSpec(NLL.function, outputs=outputs), "scalar": VALUES}
    for batch in batches:
        shard = batch.select(batch.split_balanced(world)[rank])
        for role in (r for r in roles if not r.trainable):
            made.forward(role.name, shard, outputs, 1.0)
        for role in (r for r in roles if r.trainable):
            made.train(role.name, shard, losses[role.head], Scale.of(batch))


def forget(made: Fsdp2Backend) -> None:
    """Drop the loaded models, but stay in the process group."""
    made._roles.clear()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free must not count as used before, and then be used


def random_batch(count: int, length: int, vocabulary: int) -> SequenceBatch:
    """Sequences of equal length, all of whose tokens are trained on."""
    rng = np.random.default_rng(0)
    return SequenceBatch.from_lists(
        [rng.integers(0, vocabulary, length) for _ in range(count)],
        token_columns={"loss_mask": [np.ones(length, np.float32)] * count},
    )


def resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the most) in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
