"""Workers of the test cluster are forked: starting them anew takes most of the suite's time, and nothing else tells."""

import os
import sys

import pytest

pytestmark = pytest.mark.slow

ENVIRONMENTS = ({}, {"env_vars": {"NAME": "value"}})
"""With the second, the raylet starts another program."""


def test_a_worker_is_forked_from_a_process_that_has_imported_torch(cluster):
    import ray

    def seen():
        return os.getppid(), "rl_backend_fsdp2.backend" in sys.modules

    first, second = (ray.get(ray.remote(num_cpus=1)(seen).options(runtime_env=env).remote()) for env in ENVIRONMENTS)
    assert first == second
    assert first[1]
