from types import SimpleNamespace

import pytest
from rl_core.config.sections import BackendConfig, GeneratorConfig
from rl_core.errors import WorkerDied
from rl_core.training.observers import Observers
from rl_core.training.recovery import Recovery


class CacheConfig(GeneratorConfig):
    memory_settings = ("cache_tokens", "batch")

    cache_tokens: int = 100
    batch: int | None = None


def stage(replicas=1):
    return SimpleNamespace(
        name="train",
        backend=SimpleNamespace(config=BackendConfig(name="b", max_tokens_per_microbatch=512)),
        generator=SimpleNamespace(config=CacheConfig(name="g", replicas=replicas)),
        model=SimpleNamespace(max_length=64),
    )


def test_failures_up_to_the_limit_are_recovered_from_and_one_more_stops_the_run(caplog):
    recovery = Recovery(1)
    recovery.absorb(WorkerDied("training worker train-0 ended", role="train"), stage(), saved=8)
    assert caplog.messages == [
        "failure 1 of 1 that are recovered from: training worker train-0 ended",
        "starting all workers again, and continuing after step 8",
    ]
    with pytest.raises(WorkerDied) as caught:
        recovery.absorb(WorkerDied("training worker train-0 ended", role="train"), stage(), saved=8)
    assert str(caught.value) == (
        "training worker train-0 ended\n"
        "    there were 2 failures, and run.max_failures is 1: the run stops\n"
        "    `rl resume` continues from the last checkpoint"
    )


def test_without_a_limit_a_run_always_goes_on(caplog):
    recovery = Recovery(None)
    for _ in range(20):
        recovery.absorb(WorkerDied("gone", cause="hung"), stage(), saved=None)
    assert caplog.messages[-2:] == [
        "failure 20: gone",
        "starting all workers again, and continuing at the beginning of stage 'train' (it has no checkpoint yet)",
    ]


@pytest.mark.parametrize(
    ("role", "cause", "replicas", "settings"),
    [
        ("train", "device_memory", 1, "the device's memory was not enough: lower backend.max_tokens_per_microbatch"),
        ("generate", "device_memory", 1, "the device's memory was not enough: lower generator.cache_tokens"),
        ("train", "memory", 2, "memory was not enough: lower backend.max_tokens_per_microbatch"),
    ],
)
def test_out_of_memory_names_the_settings_as_the_plugins_call_them(role, cause, replicas, settings):
    values = {"train": " (now 512)", "generate": " (now 100), generator.batch (not set)"}
    more = ", generator.replicas" if replicas > 1 else ""
    with pytest.raises(WorkerDied) as caught:
        Recovery(0).absorb(WorkerDied("gone", role=role, cause=cause), stage(replicas), saved=None)
    assert str(caught.value) == (
        "gone\n    this was the first failure, and run.max_failures is 0: the run stops\n"
        f"    {settings}{values[role]}{more}, model.max_length (now 64)\n"
        "    `rl resume` continues from the last checkpoint"
    )


def test_where_ray_itself_is_gone_it_is_started_again_too(caplog):
    Recovery(3).absorb(WorkerDied("Ray is lost", cause="ray"), stage(), saved=2)
    assert caplog.messages[-1] == "starting Ray and all workers again, and continuing after step 2"


def test_the_first_step_after_a_failure_says_what_it_took_and_every_one_how_many_there_were(caplog):
    recovery = Recovery(None)
    loop, logged = Observers(recovery), []
    for step in (1, 2, 3):
        with loop.step(step):
            logged.append(sorted(loop.metrics()))
        if step == 1:
            recovery.absorb(WorkerDied("gone", cause="hung"), stage(), saved=1)
            assert loop.metrics() == {}, "nothing of it with an evaluation between steps"
    assert logged == [[], ["run/failures", "time/recovery_s"], ["run/failures"]]
