from rl_core.cluster.placement import bundles_in_order, machines_of


def test_the_machine_of_every_bundle_is_asked_for_once(monkeypatch):
    machines = {1: "B", 0: "A"}
    monkeypatch.setattr("ray.util.placement_group_table", lambda group: {"bundles_to_node_id": machines})
    assert machines_of(None, 2) == ["A", "B"]


def test_neighbouring_ranks_share_a_machine():
    machines = "ABBABABA"
    order = bundles_in_order(machines, 8, per_machine=0)
    assert [machines[bundle] for bundle in order] == list("AAAABBBB")
    assert sorted(order) == list(range(8))


def test_training_takes_as_many_gpus_of_each_machine_as_the_config_says_and_generators_the_others():
    machines = "ABABABABABAB"
    order = bundles_in_order(machines, 8, per_machine=4)
    assert [machines[bundle] for bundle in order] == list("AAAABBBBAABB")
    assert sorted(order) == list(range(12))


def test_a_machine_with_too_few_gpus_for_its_share_of_training_has_generators():
    machines = "AABBBBCCCC"
    order = bundles_in_order(machines, 8, per_machine=4)
    assert [machines[bundle] for bundle in order] == list("BBBBCCCCAA")


def test_ranks_that_find_no_whole_machine_take_what_is_left():
    machines = "AAABBB"
    order = bundles_in_order(machines, 4, per_machine=4)
    assert [machines[bundle] for bundle in order] == list("AAABBB")
