"""Where generators live, how weights reach them, and what a config may ask for."""

from __future__ import annotations

import pytest
from acme_kit import SamplerConfig, TinyConfig
from rl_core import machine
from rl_core.config.generators import has_own_gpus, weight_transport
from rl_plan.table import describe_generators

GENERATOR = "generator: {name: sampler, replicas: 2}\nrewards: [{name: digits}]\n"


@pytest.fixture(autouse=True)
def _no_driver(monkeypatch):
    monkeypatch.setattr(machine, "gpu_count", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def text(base):
    return base.replace("name: imitate", "name: clip") + GENERATOR


@pytest.fixture
def capable(monkeypatch):
    """Both components offer both transports."""
    for owner in (TinyConfig, SamplerConfig):
        monkeypatch.setattr(owner, "weight_transports", {"ipc": "acme:Ipc", "collective": "acme:Collective"})


@pytest.mark.parametrize(
    ("overrides", "own", "transport", "line"),
    [
        ([], False, "object_store", "2"),
        (["run.max_staleness=1"], False, "object_store", "2"),
        (["run.gpus=4"], False, "ipc", "2; on the trainers' GPUs; weights by ipc"),
        (
            ["run.gpus=4", "run.max_staleness=1"],
            True,
            "collective",
            "2; each on a GPU of its own; weights by collective",
        ),
        (
            ["run.gpus=4", "generator.placement=separate", "generator.weight_transport=object_store"],
            True,
            "object_store",
            "2; each on a GPU of its own; weights by object store",
        ),
        (
            ["run.gpus=4", "generator.replicas=8"],
            False,
            "object_store",
            "8; on the trainers' GPUs; weights by object store",
        ),
        (
            ["run.gpus=4", "generator.replicas={min: 2, max: 3}"],
            False,
            "object_store",
            "2 to 3, as the cluster has room; on the trainers' GPUs; weights by object store",
        ),
        (["generator.weight_transport=collective"], False, "collective", "2; weights by collective"),
    ],
)
def test_auto_places_generators_and_takes_the_fastest_way(capable, config_of, text, overrides, own, transport, line):
    stage = config_of(text, *overrides).stages[0]
    assert (has_own_gpus(stage), weight_transport(stage)) == (own, transport)
    assert describe_generators(stage) == line


def test_components_that_know_only_the_object_store_keep_it(config_of, text):
    for overrides in (["run.gpus=4"], ["run.gpus=4", "run.max_staleness=1"]):
        assert weight_transport(config_of(text, *overrides).stages[0]) == "object_store"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["run.gpus=4", "run.max_staleness=1", "generator.placement=colocated"],
            "command line: run.max_staleness: rollouts cannot be sampled while the same GPUs train (run.gpus: 4, "
            "generator.placement: colocated)\n    generator.placement: separate, or run.max_staleness: 0",
        ),
        (
            ["generator.placement=colocated"],
            "command line: generator.placement: there are no GPUs to share (run.gpus: 0); on the CPU every worker is a "
            "process of its own\n    remove it, or set run.gpus",
        ),
        (
            ["generator.weight_transport=ipc"],
            "command line: generator.weight_transport: weights cannot go by ipc: there are no GPUs to share "
            "(run.gpus: 0)\n    weight_transport: auto",
        ),
        (
            ["run.gpus=4", "generator.placement=separate", "generator.weight_transport=ipc"],
            "command line: generator.weight_transport: weights cannot go by ipc: only processes on the same GPU share "
            "memory, and the generators have GPUs of their own\n    weight_transport: auto",
        ),
        (
            ["run.gpus=4", "generator.replicas=6", "generator.weight_transport=ipc"],
            "command line: generator.weight_transport: weights cannot go by ipc: each generator must be on a GPU with "
            "a training worker; there are 6 generators and 4 workers\n    weight_transport: auto",
        ),
        (
            ["run.gpus=4", "generator.weight_transport=collective"],
            "command line: generator.weight_transport: weights cannot go by collective: NCCL does not join processes "
            "on the same GPU, and the generators share the trainers'\n    weight_transport: auto",
        ),
    ],
)
def test_what_the_layout_does_not_allow_is_an_error_with_its_reason(capable, problems_of, text, overrides, message):
    assert problems_of(text, *overrides) == [message]


@pytest.mark.parametrize(("owner", "name"), [(TinyConfig, "backend 'tiny'"), (SamplerConfig, "generator 'sampler'")])
def test_a_component_without_the_transport_is_named(capable, monkeypatch, problems_of, text, owner, name):
    monkeypatch.setattr(owner, "weight_transports", {})
    assert problems_of(text, "generator.weight_transport=collective") == [
        f"command line: generator.weight_transport: weights cannot go by collective: the {name} does not offer it\n"
        "    weight_transport: auto"
    ]


def test_fewer_gpus_than_the_workers_need_on_this_machine_are_a_warning(monkeypatch, problems_of, text):
    monkeypatch.setattr(machine, "gpu_count", lambda: 4)
    assert problems_of(text, "run.gpus=4") == []
    assert problems_of(text, "run.gpus=4", "run.max_staleness=1", "run.address=auto") == []
    assert problems_of(text, "run.gpus=4", "run.max_staleness=1") == [
        "command line: run.gpus: the workers need 6 GPUs (4 for training, and 2 for generators), and this machine has "
        "4\n    lower run.gpus or generator.replicas, use generator.placement: colocated, or set run.address"
    ]
