"""What a config asks of the cluster."""

from __future__ import annotations

import pytest
from rl_core import machine
from rl_core.cluster import session
from rl_core.config.run_section import RunSection
from rl_core.training.cluster_needs import cluster_interface, ray_needs, resources_of


@pytest.fixture
def text(base, monkeypatch):
    """A config with generators, on a machine without a GPU driver."""
    monkeypatch.setattr(machine, "gpu_count", lambda: None)
    generators = "generator: {name: sampler, replicas: 2}\nrewards: [{name: digits}]\n"
    return base.replace("name: imitate", "name: clip") + generators


def test_separate_generators_add_a_gpu_each_to_what_the_cluster_must_have(config_of, text):
    separate = resources_of(config_of(text, "run.gpus=4", "run.max_staleness=1").stages[0])
    assert (separate.ranks, separate.replicas, separate.separate) == (4, 2, True)
    assert len(separate.bundles) == 6
    assert len(resources_of(config_of(text, "run.gpus=4").stages[0]).bundles) == 4


def test_a_ray_of_this_machine_alone_has_a_gpu_for_every_worker(monkeypatch, config_of, text):
    monkeypatch.setattr(session, "gpu_count", lambda: 8)
    more = "generator.replicas={min: 1, max: 3}"
    for overrides, gpus in ((["run.max_staleness=1"], 6), (["run.max_staleness=1", more], 7), ([], 4)):
        assert session.head_options(ray_needs(config_of(text, "run.gpus=4", *overrides))).gpus == gpus


@pytest.mark.parametrize(
    ("run", "address", "interface"),
    [
        ({"network_interface": "eth1"}, "", None),  # a Ray that the run starts itself is on one machine
        ({"network_interface": "eth1"}, "head:6379", "eth1"),
        ({"network_interface": "eth1", "address": "auto"}, "", "eth1"),
        ({"address": "auto"}, "", None),
    ],
)
def test_the_interface_of_the_config_is_for_clusters(monkeypatch, run, address, interface):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster_interface(RunSection(steps=1, **run)) == interface
