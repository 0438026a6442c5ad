"""How a worker calls its component: in one thread, or on the event loop where the component is async."""

from types import SimpleNamespace

import pytest
from frail_workers import Options
from rl_core.cluster.pool import Deadlines, WorkerPool
from rl_core.cluster.resources import Resources
from rl_core.cluster.worker import Worker
from rl_core.contracts.backend import WorkerContext
from rl_core.discovery.registry import load_registry
from rl_core.errors import RLError


def test_a_plugin_whose_hook_fails_in_a_worker_is_named_with_the_way_to_do_without_it():
    failed = SimpleNamespace(package="acme-kit", error=OSError("no such device"))
    worker = Worker.__new__(Worker)  # its constructor prepares a whole process
    worker._name, worker._registry = "train-0", SimpleNamespace(call=lambda hook, **arguments: [failed])
    with pytest.raises(RLError) as caught:
        worker._build("pkg:Backend", None, WorkerContext(0, 1, "", 0), "train")
    assert str(caught.value) == (
        "plugin acme-kit: on_worker_start failed in train-0: OSError: no such device\n"
        "    fix or disable it: RL_DISABLE_PLUGINS=acme-kit"
    )


@pytest.fixture(scope="module")
def pool(cluster, tmp_path_factory):
    made = WorkerPool(
        manifest=load_registry().manifest(),
        logs=tmp_path_factory.mktemp("logs"),
        deadlines=Deadlines(start_s=100, call_s=60),
    )
    made.prepare(Resources(ranks=1, replicas=0, gpus=0, nodes=1, threads=1, generator_threads=1))
    yield made
    made.close()


@pytest.fixture
def call(pool):
    """Build a component; returns what asks it, without waiting for the answer."""

    def build(component, kind="train"):
        choice = SimpleNamespace(component=SimpleNamespace(factory=f"frail_workers:{component}"), config=Options())
        pool.build(pool.trainers, choice, kind=kind, context=WorkerContext(0, 1, "", 0))
        return pool.trainers[0].call.remote

    return build


@pytest.mark.slow
def test_a_blocking_component_is_called_in_one_thread_one_call_after_the_other(pool, call):
    ask = call("Rank")
    assert sorted(pool.get([ask("count_slowly") for _ in range(50)])) == list(range(1, 51))
    assert len(set(pool.get([ask("thread"), ask("thread_of_setup")]))) == 1


@pytest.mark.slow
def test_an_async_component_is_called_on_the_event_loop_also_while_a_call_waits(pool, call):
    ask = call("AsyncComponent")
    waiting = ask("wait_for_release")
    assert pool.get([ask("release"), waiting]) == ["released", "done"]
    with pytest.raises(RLError, match=r"KeyError: 'missing'"):
        pool.get([ask("break_down")])
    pool.get([pool.trainers[0].unload.remote()])
    ask = call("AsyncComponent")
    assert pool.get([ask("closed")]) == [1]


@pytest.mark.slow
def test_new_weights_reach_a_component_that_is_sampling(pool, call):
    call("Rank")
    worker = pool.trainers[0]
    sampling = worker.call.remote("sample_until_updated")
    updated = worker.call_each.remote("update", [], while_sampling=True)
    assert pool.get([updated, sampling]) == ["updated", "done"]


@pytest.mark.slow
@pytest.mark.parametrize("component", ["Rank", "AsyncComponent"])
def test_a_component_that_exits_cancels_or_ends_an_iteration_is_an_error_and_its_worker_goes_on(pool, call, component):
    ask = call(component)
    ended = (("leave", "SystemExit: 3"), ("stop_iteration", "StopIteration"), ("cancel", "CancelledError: the engine"))
    for method, text in ended:
        with pytest.raises(RLError, match=rf"^training worker train-0 .*\n(.*\n)*.*{text}"):
            pool.get([ask(method)])
    assert pool.get([ask("count")]) == [1]
