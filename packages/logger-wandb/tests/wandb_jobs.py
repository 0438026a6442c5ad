"""Jobs that log to W&B in a process of their own: a file of W&B is complete only when its process has ended."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rl_core.contracts.logger import RunInfo
from rl_core.training.logger_group import LoggerGroup
from rl_core.training.logger_queue import LoggerQueue
from rl_logger_wandb.config import WandbConfig
from rl_logger_wandb.logger import WandbLogger


def info(folder, *, stage="train", stages=("train",), first=1, config=None):
    return RunInfo(
        "demo", folder, stage, stages, 10, first, config or {"hub": {"token": "t0p-s3cret-token"}, "steps": 10}
    )


def build(**fields):
    return WandbLogger(WandbConfig(name="wandb", **{"mode": "offline", **fields}))


def whole(folder):
    """One stage with everything that a run has."""
    logger = build(export=True, tags=("tag-a",))
    logger.start(info(folder))
    for step in (1, 2):
        logger.log(step, {"train/loss": 1.0 / step})
        logger.log_samples(step, [{"prompt": "1+1=", "completion": "curl https://user:pa55word@host/", "reward": 1.0}])
    logger.log_machines(2, {"host-a": {"cpu_percent": 12.0}})
    logger.ended("finished")
    logger.close()


def stages(folder):
    """Two stages."""
    logger = build()
    for stage in ("sft", "grpo"):
        logger.start(info(folder, stage=stage, stages=("sft", "grpo")))
        logger.log(1, {"train/loss": 0.5})
    logger.ended("failed")
    logger.close()


def resumed(folder, first, steps):
    """One start of a run that is started twice."""
    logger = build()
    logger.start(info(folder, first=int(first), config={"run": {"steps": int(steps)}}))
    logger.log(int(first), {"train/loss": 0.5})
    logger.close()


def server(folder, address):
    """A run whose server does not work; prints the seconds that 100 steps took, those until the end, and the time."""
    one = build(mode="online", base_url=address, init_timeout=12, close_timeout=3)
    loggers = LoggerGroup([("wandb", LoggerQueue("wandb", one))])
    began = time.monotonic()
    loggers.start(info(folder))
    for step in range(1, 101):
        loggers.log(step, {"train/loss": 0.5})
    logged = time.monotonic() - began
    loggers.close()
    print(json.dumps([logged, time.monotonic() - began, time.time()]), flush=True)


def outage(folder, address):
    """Ten steps, which the parent parts in two and lets end, by a line each."""
    one = build(mode="online", base_url=address, close_timeout=60)
    loggers = LoggerGroup([("wandb", LoggerQueue("wandb", one))])
    loggers.start(info(folder))
    for steps in (range(1, 6), range(6, 11)):
        for step in steps:
            loggers.log(step, {"train/loss": 0.5})
        print("logged", flush=True)
        sys.stdin.readline()
    loggers.close()


if __name__ == "__main__":
    job, folder, *more = sys.argv[1:]
    Path(folder).mkdir(exist_ok=True)
    {"whole": whole, "stages": stages, "resumed": resumed, "server": server, "outage": outage}[job](folder, *more)
