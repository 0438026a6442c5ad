"""The process that runs cases, one after the other: what hangs or dies takes only this process along."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from typing import Any

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "triton")


def serve(connection: Connection, device: str, size: str) -> None:
    """Send :func:`facts` and what cases there are; then, for each name received, what the case found and how it ended.

    Messages are pairs: ``facts`` or ``broken``; ``found`` any number of times; ``done``, ``skipped`` or ``failed``.
    """
    os.setsid()  # so that processes of a case end with this one
    os.environ["HF_HUB_OFFLINE"] = "1"
    if device == "cuda":  # all ranks are on this machine, which may have no network
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    try:
        import torch
        from transformers.utils import logging

        from gpu import cases  # noqa: F401 - registers them
        from gpu.registry import CASES, Machine, Skip

        logging.disable_progress_bar()
        if device == "cuda" and not torch.cuda.is_available():
            connection.send(
                ("broken", f"PyTorch {torch.__version__} sees no GPU\n    add --device cpu, or see nvidia-smi")
            )
            return

        if device == "cpu":
            torch.set_num_threads(1)
        listed = [{"name": c.name, "part": c.part, "limit_s": c.seconds} for c in CASES.values()]
        connection.send(("facts", {"facts": facts(device), "cases": listed}))
    except Exception:  # noqa: BLE001 - whatever it is, the results have to say it
        connection.send(("broken", traceback.format_exc()))
        return
    while (name := connection.recv()) is not None:
        started = time.perf_counter()
        word, detail = "done", ""
        try:
            with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
                for found in CASES[name].run(Machine(device, size, folder)):
                    holds = getattr(found, "holds", True)
                    connection.send(("found", {**asdict(found), "holds": holds}))
        except Skip as reason:
            word, detail = "skipped", str(reason)
        except Exception:  # noqa: BLE001 - a case that fails must not take the others along
            word, detail = "failed", traceback.format_exc()
        connection.send((word, {"detail": detail, "seconds": time.perf_counter() - started}))


def facts(device: str) -> Mapping[str, Any]:
    """Versions and the device."""
    import torch

    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    found: dict[str, Any] = {"versions": versions, "cpu": platform.processor() or platform.machine()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "driver": _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        }
    else:
        found |= {"device": "CPU", "capability": torch.backends.cpu.get_cpu_capability()}
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _first_line(command: list[str]) -> str | None:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.strip().partition("\n")[0] or None
