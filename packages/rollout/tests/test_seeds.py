import numpy as np
from rl_rollout.seeds import request_seeds


def test_request_seeds_depend_on_seed_stage_and_step_only():
    base = request_seeds(0, "grpo", 1, 4)
    assert base.dtype == np.uint64
    assert request_seeds(0, "grpo", 1, 4).tolist() == base.tolist()
    others = [request_seeds(1, "grpo", 1, 4), request_seeds(0, "ppo", 1, 4), request_seeds(0, "grpo", 2, 4)]
    assert all(not set(o.tolist()) & set(base.tolist()) for o in others)
