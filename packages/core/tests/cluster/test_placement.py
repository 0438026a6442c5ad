from rl_core.cluster.placement import bundles_by_machine


def test_neighbouring_ranks_share_a_machine(monkeypatch):
    machines = dict(enumerate("ABBABABA"))
    monkeypatch.setattr("ray.util.placement_group_table", lambda group: {"bundles_to_node_id": machines})
    order = bundles_by_machine(None, 8)
    assert [machines[bundle] for bundle in order] == list("AAAABBBB")
    assert sorted(order) == list(range(8))
