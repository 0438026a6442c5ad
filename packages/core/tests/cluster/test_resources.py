from dataclasses import replace

from rl_core.cluster.resources import Resources

BASE = Resources(ranks=2, replicas=1, gpus=0, nodes=1, threads=1, generator_threads=2)


def test_workers_serve_a_stage_that_needs_fewer_generators():
    assert BASE.cover(BASE)
    assert BASE.cover(replace(BASE, replicas=0, generator_threads=4))
    assert not BASE.cover(replace(BASE, replicas=2, generator_threads=1))
    assert not BASE.cover(replace(BASE, ranks=1))
    assert not BASE.cover(replace(BASE, generator_threads=1))


def test_on_cpu_every_worker_has_a_bundle_and_on_gpu_generators_share_them():
    assert len(BASE.bundles) == 3
    assert BASE.replica_bundle(0) == 2
    colocated = replace(BASE, gpus=2)
    assert colocated.bundles == [{"CPU": 2.0, "GPU": 1.0}] * 2
    assert colocated.replica_bundle(0) == 0


def test_generators_may_be_as_many_as_there_is_room_for():
    assert BASE.cover(replace(BASE, max_replicas=8))
    assert len(replace(BASE, max_replicas=8).bundles) == 3  # room is reserved for the fewest
