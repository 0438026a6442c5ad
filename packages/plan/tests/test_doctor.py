"""``rl doctor``: the judgements, on made-up measurements where the machine's own are fixed."""

from __future__ import annotations

import json
import resource
import shutil
import socket
from collections import namedtuple
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
from rl_core import network
from rl_core.cli.main import main
from rl_core.discovery.registry import load_registry
from rl_plan.doctor import machine_checks, software_checks
from rl_plan.doctor.finding import Finding, examine

GIB = 2**30
FAST = SimpleNamespace(here=lambda: "makes it fast")
Usage = namedtuple("Usage", "total used free")
PLUGIN = """
from rl_core.component import Component
from rl_core.hookspecs import hookimpl

@hookimpl
def register_rewards():
    return [Component("reward", "deep", "a:B", "a:C", "s", imports=("unheard_of",))]
"""


def probe(**changes) -> dict:
    seen = {
        "version": "2.13.0",
        "cuda": None,
        "hip": None,
        "available": False,
        "devices": [],
        "nccl": "",
        "gloo": True,
    }
    return {**seen, **changes}


def judge(driver: str = "", **changes) -> list[Finding]:
    return list(software_checks.torch_findings(probe(**changes), driver))


def test_a_cpu_machine_is_fine():
    assert judge() == [
        Finding("PyTorch", "ok", "2.13.0 (CPU build)"),
        Finding("GPU", "ok", "no NVIDIA driver: training runs on CPU (run.gpus: 0)"),
    ]


def test_a_gpu_machine_shows_devices_driver_and_nccl():
    found = judge("580.1, NVIDIA H200", cuda="13.0", available=True, devices=["NVIDIA H200"], nccl="2.28.9")
    assert found == [
        Finding("PyTorch", "ok", "2.13.0 (CUDA 13.0 build)"),
        Finding("GPU", "ok", "1 usable: NVIDIA H200; driver 580.1, NVIDIA H200"),
        Finding("NCCL", "ok", "2.28.9"),
    ]


def test_a_driver_with_a_cpu_build_is_a_warning():
    [_, gpu] = judge("580.1, NVIDIA H200")
    assert (gpu.status, gpu.detail) == ("warn", "driver 580.1, NVIDIA H200, but PyTorch is a CPU build")
    assert gpu.fix == "install a CUDA build: https://pytorch.org/get-started"


def test_a_driver_that_a_cuda_build_cannot_use_fails():
    [_, gpu] = judge("470.1, NVIDIA T4", cuda="13.0")
    assert (gpu.status, gpu.detail) == ("fail", "driver 470.1, NVIDIA T4, but PyTorch sees no usable GPU")


def test_a_build_without_gloo_fails():
    assert Finding("gloo", "fail", "this build of PyTorch has no gloo", "pip install --force-reinstall torch") in judge(
        gloo=False
    )


@pytest.mark.parametrize(("free", "status"), [(0.5, "fail"), (5, "warn"), (50, "ok")])
def test_disk_space_is_checked_by_what_is_free(monkeypatch, free, status):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 * GIB, 0, int(free * GIB)))
    assert {finding.status for finding in machine_checks.disk()} == {status}


def test_small_shared_memory_names_the_docker_option(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(GIB // 16, 0, GIB // 16))
    assert list(machine_checks.shared_memory(tmp_path)) == [
        Finding(
            "shared memory",
            "warn",
            f"0.1 GiB free of 0.1 GiB in {tmp_path}",
            "start the container with --shm-size=8g (or more)",
        )
    ]


def test_a_system_without_shared_memory_is_fine(tmp_path):
    [found] = machine_checks.shared_memory(tmp_path / "absent")
    assert found.status == "ok"


def test_a_low_limit_of_open_files_names_the_command(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, resource.RLIM_INFINITY))
    assert list(machine_checks.open_files()) == [
        Finding("open files", "warn", "limit 1024 (hard limit unlimited)", "ulimit -n 65536")
    ]


def test_a_low_limit_of_processes_names_the_command(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1000, 2000))
    assert list(machine_checks.processes()) == [
        Finding("processes", "warn", "limit 1000 (hard limit 2000)", "ulimit -u 65536")
    ]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert list(machine_checks.processes()) == [Finding("processes", "ok", "limit unlimited (hard limit unlimited)")]


def test_the_limit_of_locked_memory_matters_beside_infiniband(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (65536, 65536))
    monkeypatch.setattr(machine_checks.Path, "is_dir", lambda path: False)
    assert list(machine_checks.locked_memory()) == []
    monkeypatch.setattr(machine_checks.Path, "is_dir", lambda path: True)
    fix = "ulimit -l unlimited (containers: --ulimit memlock=-1)"
    assert list(machine_checks.locked_memory()) == [
        Finding("locked memory", "warn", "limit 65536 (hard limit 65536)", fix)
    ]


def test_gpus_without_nccl_cannot_train_together():
    detail = "this build of PyTorch has no NCCL, so several GPUs cannot train together"
    fix = "install a build with NCCL: https://pytorch.org/get-started"
    for devices, status in ((["H200"], "warn"), (["H200", "H200"], "fail")):
        found = judge("580.1", cuda="13.0", available=True, devices=devices)
        assert found[-1] == Finding("NCCL", status, detail, fix)


def test_the_address_of_a_cluster_is_tried():
    fix = "start Ray there (ray start --head), or run: unset RAY_ADDRESS"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        for spelled in (address, f"ray://{address}"):
            assert list(software_checks.ray_cluster(spelled)) == [
                Finding("Ray cluster", "ok", f"a cluster answers at RAY_ADDRESS {spelled}")
            ]
    assert list(software_checks.ray_cluster(address)) == [
        Finding("Ray cluster", "fail", f"no cluster answers at RAY_ADDRESS {address}: Connection refused", fix)
    ]
    assert list(software_checks.ray_cluster("head-node")) == [
        Finding("Ray cluster", "fail", "RAY_ADDRESS 'head-node' is not of the form HOST:PORT", fix)
    ]
    assert [list(software_checks.ray_cluster(one)) for one in ("", "auto")] == [[], []]


def test_the_interface_of_process_groups_is_named_with_a_warning_where_it_leads_to_other_machines(monkeypatch):
    monkeypatch.setattr(network, "interfaces", lambda: {"lo": ["127.0.0.1"], "eth0": ["10.0.0.5"]})
    monkeypatch.setattr(network, "interface_towards", {"10.0.0.1": "eth0", "fd00::1": "eth0"}.get)
    quiet = Finding("network", "ok", "runs on this machine listen on lo (127.0.0.1) only")
    assert [list(machine_checks.network(one)) for one in ("", "local", "cluster")] == [[quiet]] * 3
    fix = "keep this network private (SECURITY.md), or name another with run.network_interface"
    detail = (
        "workers on several machines listen on eth0 (10.0.0.5), where gloo, NCCL and torch's stores authenticate nobody"
    )
    for address in ("10.0.0.1:6379", "ray://10.0.0.1:10001", "[fd00::1]:6379"):
        assert list(machine_checks.network(address)) == [Finding("network", "warn", detail, fix)]
    (unknown,) = machine_checks.network("auto")
    assert unknown.status == "warn"
    assert "is not known; it has eth0 (10.0.0.5), lo (127.0.0.1), where" in unknown.detail


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "1000\n", "memory.current": "400\n"}, (1000, 400)),
        ({"memory.max": "max\n", "memory.current": "400\n"}, (None, 0)),
        ({"memory/memory.limit_in_bytes": "2000", "memory/memory.usage_in_bytes": "5"}, (2000, 5)),
        ({}, (None, 0)),
    ],
)
def test_the_container_limit_is_read_from_either_cgroup_version(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine_checks.cgroup_memory(tmp_path) == expected


def test_a_check_that_fails_itself_is_a_warning():
    def look():
        raise OSError("no such\ndevice")

    detail, fix = "could not be examined: OSError: no such device", "the other findings hold; please report this one"
    assert examine("disk", look) == [Finding("disk", "warn", detail, fix)]


def test_plugins_are_checked_one_by_one(install, monkeypatch):
    install("rl-x-ok", PLUGIN, version="1.5")
    install("rl-x-broken", "raise ValueError('no')")
    install("rl-x-off", PLUGIN)
    monkeypatch.setenv("RL_DISABLE_PLUGINS", "rl-x-off")
    found = [f for f in software_checks.plugins(load_registry()) if f.check.startswith("plugin rl-x")]
    assert found == [
        Finding(
            "plugin rl-x-broken",
            "fail",
            "1.0 is broken: importing rl_x_broken.plugin failed: ValueError: no (plugin.py:1)",
            "pip install --upgrade rl-x-broken",
        ),
        Finding("plugin rl-x-off", "ok", "1.0, switched off by RL_DISABLE_PLUGINS"),
        Finding("plugin rl-x-ok", "ok", "1.5"),
        Finding(
            "plugin rl-x-ok",
            "warn",
            "reward 'deep' needs the module 'unheard_of', which is not installed",
            "pip install unheard_of",
        ),
    ]


def test_kernels_say_what_they_do_on_this_machine(monkeypatch):
    points = [EntryPoint(name, f"{__name__}:{name.upper()}", "rl_torch.kernels") for name in ("fast", "missing")]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [p for p in points if p.group == group])
    fast, missing = software_checks.kernels()
    assert (fast.check, fast.status) == ("kernel fast", "ok")
    assert fast.detail.endswith(": makes it fast")
    assert (missing.check, missing.status) == ("kernel missing", "warn")
    assert "has no attribute 'MISSING'" in missing.detail
    assert missing.fix.startswith("pip install --upgrade ")


def test_unmet_requirements_of_plugins_fail(install):
    requires = ["rl-core>=0.1", "pluggy<1", "unheard-of>=2", "also-unheard; extra == 'x'"]
    install("rl-x-ok", PLUGIN, requires=requires)
    found = [f for f in software_checks.requirements(load_registry()) if "rl-x-ok" in f.detail]
    assert [(f.status, f.fix) for f in found] == [
        ("fail", 'pip install "pluggy<1"'),
        ("fail", 'pip install "unheard-of>=2"'),
    ]
    assert found[0].detail.startswith("rl-x-ok needs pluggy<1, but ")
    assert found[1].detail == "rl-x-ok needs unheard-of>=2, which is not installed"


@pytest.fixture
def quick_torch(monkeypatch):
    monkeypatch.setattr(software_checks, "_probe_torch", probe)
    monkeypatch.setattr(software_checks, "_nvidia_driver", lambda: "")
    monkeypatch.setattr(software_checks, "requirements", lambda registry: [])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 * GIB, 0, 50 * GIB))


def test_the_command_ends_with_0_when_nothing_fails(site, quick_torch, capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    checks = {finding["check"] for finding in report["findings"]}
    assert {
        "Python",
        "system",
        "memory",
        "shared memory",
        "open files",
        "processes",
        "PyTorch",
        "Ray",
        "vLLM",
    } <= checks


def test_the_command_ends_with_3_when_a_plugin_is_broken(install, quick_torch, capsys):
    install("rl-x-broken", "raise ValueError('no')")
    assert main(["doctor"]) == 3
    printed = capsys.readouterr()
    row = next(line for line in printed.out.splitlines() if "rl-x-broken" in line)
    assert "fail" in row
    assert "Traceback" not in printed.out + printed.err


def test_torch_that_does_not_import_fails_with_its_last_line(monkeypatch):
    monkeypatch.setattr(software_checks, "_TORCH_PROBE", "raise ImportError('libcudart.so.13: cannot open')")
    monkeypatch.setattr(software_checks, "_nvidia_driver", lambda: "")
    monkeypatch.setattr(software_checks, "_version", lambda package: "2.13.0")
    assert list(software_checks.torch()) == [
        Finding(
            "PyTorch",
            "fail",
            "2.13.0 is installed but does not import: ImportError: libcudart.so.13: cannot open",
            "pip install --force-reinstall torch",
        )
    ]


def test_doctor_knows_the_local_cluster_as_an_address(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert list(software_checks.ray_cluster("cluster")) == [
        Finding(
            "Ray cluster",
            "fail",
            "RAY_ADDRESS is 'cluster', but no local cluster runs",
            "rl cluster start, or: unset RAY_ADDRESS",
        )
    ]
