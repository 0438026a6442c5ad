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


def test_separate_generators_have_gpus_besides_those_for_training():
    separate = replace(BASE, gpus=2, replicas=3, separate=True)
    assert separate.bundles == [{"CPU": 1.0, "GPU": 1.0}] * 5
    assert [separate.replica_bundle(i) for i in range(3)] == [2, 3, 4]
    assert (separate.rank_gpus, separate.replica_gpus(outside=False)) == (1.0, 1.0)
    assert not separate.shared


def test_colocated_generators_take_the_smaller_part_of_a_gpu_and_further_ones_a_whole_one():
    colocated = replace(BASE, gpus=2)
    assert (colocated.rank_gpus, colocated.replica_gpus(outside=False)) == (0.6, 0.4)
    assert colocated.replica_gpus(outside=True) == 1.0
    assert colocated.shared
    assert not BASE.shared
    assert (BASE.rank_gpus, BASE.replica_gpus(outside=True)) == (0.0, 0.0)


def test_workers_with_gpus_of_their_own_serve_a_stage_without_generators_and_no_colocated_one():
    separate = replace(BASE, gpus=2, separate=True)
    assert separate.cover(replace(BASE, gpus=2, replicas=0))
    assert not separate.cover(replace(BASE, gpus=2))


def test_a_local_ray_has_the_gpus_that_the_workers_need_and_more_for_replicas_where_there_are_some():
    separate = replace(BASE, gpus=2, max_replicas=4, separate=True)
    assert [separate.local_gpus(present) for present in (None, 2, 4, 8)] == [3, 3, 4, 6]
    assert replace(BASE, gpus=2).local_gpus(8) == 2
    assert replace(BASE, ranks=4, gpus=2, nodes=2).local_gpus(None) == 2
