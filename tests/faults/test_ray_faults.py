"""Ray's own processes are killed under runs, which start Ray again and end as if nothing had been."""

import json
import os
import random
import subprocess
import sys
import time
from datetime import datetime

import psutil
import pytest
from sockets import tree
from support import RL, environment, metrics_of

pytestmark = pytest.mark.slow

REWARD = """\
import os, signal, time
from pathlib import Path

import psutil

def kill(name):
    start = next(p for p in psutil.Process().children() if any("ray_start.py" in part for part in p.cmdline()))
    processes = [start] if name == "ray_start.py" else start.children(recursive=True)
    victim = next(p for p in processes if any(name in part for part in p.cmdline()))
    with Path(__file__).with_name("killed").open("a") as log:
        log.write(f"{time.time()} {name} {victim.pid}\\n")
    victim.send_signal(signal.SIGKILL)

def ones(samples):
    calls = Path(__file__).with_name("calls")
    calls.write_text(calls.read_text() + "." if calls.exists() else ".")
    victim = VICTIMS.get(len(calls.read_text()))
    if victim:
        kill(victim)
        time.sleep(2.0)  # or the steps that are left are done before it is noticed
    return [s.completion.count("1") / 4 for s in samples]

VICTIMS = """


def train(folder, tiny, victims, address=""):
    """Run GRPO in ``folder``, with a Ray of its own; its reward kills ``victims`` by the number of its call."""
    folder.mkdir()
    (folder / "my_reward.py").write_text(REWARD + repr(victims) + "\n")
    function = f"rewards=[{{name: function, function: '{folder}/my_reward.py:ones', timeout_s: null}}]"
    options = ["run.steps=16", "run.checkpoint_every=2", "run.max_failures=null", f"run.directory={folder}/run"]
    return subprocess.run(
        [RL, "run", tiny, *options, function],
        env=environment(address),
        capture_output=True,
        text=True,
        timeout=400,
    )


def comparable(row):
    """Without what depends on the clock, or tells of the failures themselves."""
    own = ("rollout/retried_requests", "run/failures")
    return {k: v for k, v in row.items() if not k.startswith("time/") and "per_second" not in k and k not in own}


KILLS = 15


def kill_and_resume(run, first, dice):
    """Start or resume a run with a Ray of its own and kill its driver, anywhere from its start to its steps."""
    process = subprocess.Popen(
        first, env=environment(""), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    newest, deadline = max(run.glob("checkpoints/step-*"), default=None), time.monotonic() + 120
    if dice.random() < 0.25:  # while Ray and the workers start
        time.sleep(dice.uniform(2.0, 6.0))
    else:
        while max(run.glob("checkpoints/step-*"), default=None) == newest:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(dice.uniform(0.0, 0.3))
    started = tree(process.pid)
    process.kill()
    process.wait()
    killed = time.monotonic()
    while alive := [pid for pid in started if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]:
        assert time.monotonic() < killed + 30, alive
        time.sleep(0.1)
    return time.monotonic() - killed


def logged_at(line):
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def assert_survived(tmp_path, tiny, cluster, victims):
    whole = train(tmp_path / "whole", tiny, {}, cluster)
    assert whole.returncode == 0, whole.stderr
    broken = train(tmp_path / "broken", tiny, victims)
    assert broken.returncode == 0, broken.stderr
    rows, undisturbed = (metrics_of(tmp_path / which / "run") for which in ("broken", "whole"))
    assert [comparable(row) for row in rows] == [comparable(row) for row in undisturbed]
    weights = "run/export/model.safetensors"
    assert (tmp_path / "broken" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert json.loads((tmp_path / "broken" / "run" / "status.json").read_text())["failures"] == len(victims)

    kills = [line.split() for line in (tmp_path / "broken" / "killed").read_text().splitlines()]
    log = (tmp_path / "broken" / "run" / "logs" / "rl.log").read_text().splitlines()
    noticed = [logged_at(line) for line in log if "WARNING rl: the Ray of this run is lost: " in line]
    back = [row["time/recovery_s"] for row in rows if "time/recovery_s" in row]
    assert len(noticed) == len(kills) == len(victims)
    delays = [seen - float(at) for (at, *_), seen in zip(kills, noticed, strict=True)]
    sys.stdout.write(f"noticed after {delays}, trained again after {back}\n")
    assert max(delays) < 10  # less than 2 s on a machine that is not busy: docs/reliability.md
    assert sum("starting Ray and all workers again, and continuing after step" in line for line in log) == len(victims)
    for _, _, pid in kills:
        assert not os.path.exists(f"/proc/{pid}")


def test_a_run_outlives_ray_s_daemons(tiny, cluster, tmp_path):
    assert_survived(tmp_path, tiny, cluster, {3: "gcs_server", 7: "DashboardAgent"})


@pytest.mark.nightly
def test_a_run_outlives_every_process_of_ray(tiny, cluster, tmp_path):
    daemons = ("raylet/raylet", "monitor.py", "dashboard.py", "client.server")
    victims = (*daemons, "RuntimeEnvAgent", "ray_start.py")
    assert_survived(tmp_path, tiny, cluster, dict(zip(range(3, 15, 2), victims, strict=True)))


@pytest.mark.nightly
def test_fifteen_kills_of_a_driver_with_its_own_ray_change_nothing_and_leave_no_process(tiny_sft, cluster, tmp_path):
    options = ["run.steps=4000", "run.checkpoint_every=10"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [RL, "run", tiny_sft, *options, f"run.directory={whole}"]
    subprocess.run(command, env=environment(cluster), check=True, capture_output=True, timeout=600)
    dice, gone = random.Random(15), []
    for _ in range(KILLS):
        begun = (broken / "config.yaml").exists()
        first = [RL, "resume", broken] if begun else [RL, "run", tiny_sft, *options, f"run.directory={broken}"]
        gone.append(kill_and_resume(broken, first, dice))
    assert max(metrics_of(broken), key=lambda row: row["step"])["step"] < 4000
    subprocess.run([RL, "resume", broken], env=environment(""), check=True, capture_output=True, timeout=600)
    sys.stdout.write(f"processes were gone {min(gone):.1f} to {max(gone):.1f} s after each of {KILLS} kills\n")
    assert [comparable(row) for row in metrics_of(broken)] == [comparable(row) for row in metrics_of(whole)]
    weights = "export/model.safetensors"
    assert (broken / weights).read_bytes() == (whole / weights).read_bytes()
