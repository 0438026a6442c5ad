from pathlib import Path

import pytest
from rl_core.cluster.failures import WorkerInfo, died, hung, ray_lost, recoverable
from rl_core.cluster.heartbeat import Heartbeat
from rl_core.errors import WorkerDied
from rl_ray.loss import RayLoss

GIB = 2**30
LOG = Path("/runs/a/logs/train-1.log")


def worker(*, role="train", free_gib=20.0, log=LOG):
    heartbeat = Heartbeat(
        pid=4242,
        node_id="ab",
        host="node-3",
        doing="train",
        rss_bytes=30 * GIB,
        available_bytes=int(free_gib * GIB),
        total_bytes=64 * GIB,
    )
    return WorkerInfo(f"{role}-1", role, heartbeat, log)


MEMORY = "at its last heartbeat it held 30.0 GiB, and {} of 64.0 GiB were free\n    its log: /runs/a/logs/train-1.log"


@pytest.mark.parametrize(
    ("ray_says", "free_gib", "cause", "reason"),
    [
        (
            "Worker unexpectedly exits with a connection error code 2. End of file. killed by the OOM killer",
            20.0,
            "died",
            "its process is gone (killed by a signal, crashed, or it called exit); " + MEMORY.format("20.0"),
        ),
        ("End of file.", 1.5, "memory", "probably the kernel's out-of-memory killer; " + MEMORY.format("1.5")),
        (
            "Task was killed due to the node running low on memory.",
            20.0,
            "memory",
            "Ray ended it because its machine ran low on memory; " + MEMORY.format("20.0"),
        ),
        (
            "The actor is dead because its node has died. Node Id: 12",
            20.0,
            "node",
            "its machine has left the cluster\n    its log: /runs/a/logs/train-1.log",
        ),
    ],
)
def test_the_reason_of_a_death_comes_from_ray_and_the_last_heartbeat(ray_says, free_gib, cause, reason):
    error = died(worker(free_gib=free_gib), ray_says, what="policy train")
    assert str(error) == f"training worker train-1 (pid 4242 on node-3) ended during policy train: {reason}"
    assert (error.worker, error.role, error.cause) == ("train-1", "train", cause)


def test_last_words_are_those_of_the_process_that_died(tmp_path):
    log = tmp_path / "train-1.log"
    log.write_text(
        "train-1: pid 11 on node-3\nFatal Python error: Aborted\nold\n"
        "train-1: pid 4242 on node-3\nstep\nFatal Python error: Segmentation fault\n\n"
        "Thread 0x1:\n  File other\n\nCurrent thread 0x2:\n  File x\n"
    )
    text = str(died(worker(log=log), "End of file.", what=""))
    assert text.endswith(
        f"free\n    Fatal Python error: Segmentation fault\n    Current thread 0x2:\n      File x\n    its log: {log}"
    )
    assert "Aborted" not in text


def test_a_hung_worker_is_described_with_its_state_and_stack():
    error = hung(worker(), "no heartbeat for 60 s", "the process is computing", "Thread 1:\n  File x", what="generate")
    assert str(error) == (
        "training worker train-1 (pid 4242 on node-3) hung during train, and was ended: no heartbeat for 60 s; "
        "the process is computing\n    its stack:\n    Thread 1:\n      File x\n    its log: /runs/a/logs/train-1.log"
    )
    assert error.cause == "hung"


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OutOfMemoryError("CUDA out of memory"), "device_memory"),
        (MemoryError(), "memory"),
        (ConnectionResetError("by peer"), "peers"),
        (RuntimeError("NCCL error: unhandled system error"), "peers"),
        (RuntimeError("CUDA error: device-side assert triggered"), "died"),
        (KeyError("missing"), None),
        (ValueError("sampling: n is 0; it must be at least 1"), None),
    ],
)
def test_only_what_a_new_start_may_fix_is_recoverable(error, cause):
    assert recoverable(error, str(error)) == cause


def test_a_ray_that_is_gone_is_a_death_of_all_workers():
    loss = RayLoss(ray_lost)
    loss.declare("gcs_server has ended")
    with pytest.raises(WorkerDied, match=r"^gcs_server has ended, and all workers with it$") as caught:
        loss.check()
    assert caught.value.cause == "ray"
