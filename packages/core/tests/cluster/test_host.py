from types import SimpleNamespace

import pytest
from rl_core.cluster.host import Host
from rl_core.contracts.backend import WorkerContext
from rl_core.errors import RLError


def test_a_plugin_whose_hook_fails_in_a_worker_is_named_with_the_way_to_do_without_it():
    failed = SimpleNamespace(package="acme-kit", error=OSError("no such device"))
    host = Host.__new__(Host)  # its constructor wants to be a Ray actor
    host._name, host._refusal, host._component = "train-0", None, None
    host._work, host._shared = SimpleNamespace(run=lambda job: job()), None
    host._activities, host._ends, host._pulse = [], {}, SimpleNamespace(beat=lambda: None)
    host._registry = SimpleNamespace(call=lambda hook, **arguments: [failed])
    with pytest.raises(RLError) as caught:
        host.build("pkg:Backend", None, WorkerContext(0, 1, "", 0), "train")
    assert str(caught.value) == (
        "plugin acme-kit: on_worker_start failed in train-0: OSError: no such device\n"
        "    fix or disable it: RL_DISABLE_PLUGINS=acme-kit"
    )
