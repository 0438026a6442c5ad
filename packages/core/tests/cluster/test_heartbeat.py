"""Heartbeats in the cluster's store."""

import pytest
from rl_core.cluster.heartbeat import Pulse, erase, read, read_all

pytestmark = pytest.mark.slow


def test_the_newest_beats_of_all_workers_are_read_in_one_request(cluster, monkeypatch):
    from ray.experimental import internal_kv

    names = [f"test-heartbeat-{i}" for i in range(3)]
    pulses = [Pulse(name, "node", lambda: ("training", False)) for name in names[:2]]
    for pulse in pulses:
        pulse.stop()
    pulses[1].beat()
    asked, store = [], internal_kv.internal_kv_get_gcs_client()

    class Counted:
        def internal_kv_multi_get(self, keys, namespace):
            asked.append(len(keys))
            return store.internal_kv_multi_get(keys, namespace)

    monkeypatch.setattr(internal_kv, "global_gcs_client", Counted())
    beats = read_all(names)
    monkeypatch.undo()
    assert asked == [3]
    assert list(beats) == names
    assert beats[names[1]].count > beats[names[0]].count
    assert beats[names[0]].doing == "training"
    assert beats[names[2]] is None
    assert read(names[1]) == beats[names[1]]
    for name in names:
        erase(name)
    assert set(read_all(names).values()) == {None}
