"""Secrets that are planted in a config are in nothing that a run writes or says, and the run resumes without them."""

import base64
import json
import os
import re
import shutil
import stat
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from frail_workers import Options
from rl_core.cluster.pool import Deadlines, WorkerPool
from rl_core.cluster.resources import Resources
from rl_core.contracts.backend import WorkerContext
from rl_core.discovery.registry import load_registry
from rl_core.io.permissions import FILE, FOLDER, run_folder
from rl_core.training.api import run
from rl_secrets.redaction import remember_secrets
from support import metrics_of

pytestmark = pytest.mark.slow

TYPED = {
    "Authorization": "Bearer kX8auth0r1zat10n",
    "bearer": "bT7bearer5ecret",
    "private_key": (
        "-----BEGIN PRIVATE KEY-----\nMIIEvplantedKey0123456789\nabcdefPlantedKeyLine2==\n-----END PRIVATE KEY-----\n"
    ),
    "passphrase": "correct horse battery",
    "token": "tK1planted-token",
    "password": "pW2/with+odd&characters=",
    "api_key": "aK3plantedapikey",
    "client_secret": "cS4plantedsecret",
    "aws_secret_access_key": "wJalrPLANTED/K7MDENG+bPxRfiCYEXAMPLE",
    "cookie": "session=cO5plantedcookie",
}
ADDRESSES = {
    "plain": "https://tO6kenplanted@example.org/x",
    "pair": "https://me:pA7irplanted@example.org/x",
    "query": "https://example.org/x?page=1&api_key=qU8eryplanted",
    "webhook": "https://hooks.slack.com/services/T0PLANTED/B0PLANTED/wH9plantedhook",
    "hub": "model at hf_AbCdEfGhIjKlMnOpQrStPlanted",
}
SECRETS = [
    *(value.removeprefix("Bearer ") for key, value in TYPED.items() if key != "private_key"),
    "MIIEvplantedKey0123456789",
    "abcdefPlantedKeyLine2==",
    *("tO6kenplanted", "pA7irplanted", "qU8eryplanted", "wH9plantedhook", "hf_AbCdEfGhIjKlMnOpQrStPlanted"),
    *("eN1fromenvironment", "https-looks-like-none-dB2pw", "fI3le5ecret", "cO4mmand5ecret"),
]

REWARD = """\
import base64, json, logging, sys
from pathlib import Path
from urllib.parse import quote

CALLS = Path(__file__).with_name("calls")

def ones(samples, **secrets):
    calls = len(CALLS.read_text()) if CALLS.exists() else 0
    CALLS.write_text("." * (calls + 1))
    Path(__file__).with_name("seen.json").write_text(json.dumps(secrets))
    everything = json.dumps(secrets), repr(secrets), str(list(secrets["addresses"].values()))
    for text in everything:
        logging.getLogger("a.library").warning("connecting with %s", text)
        print(text)
        print(quote(text), file=sys.stderr)
        print(base64.b64encode(text.encode()).decode())
    if calls == 2:
        try:
            raise KeyError(secrets["password"])
        except KeyError as error:
            raise OSError(f"401 for {secrets}") from error
    return [s.completion.count("1") / 4 for s in samples]
"""


def plant(tiny, tmp_path):
    """The planted secrets in the config of a tiny run; returns it."""
    (tmp_path / "my_reward.py").write_text(REWARD)
    secret = tmp_path / "a_secret"
    secret.touch(mode=0o600)
    secret.write_text("fI3le5ecret\n")
    config = json.dumps(
        TYPED
        | {
            "addresses": ADDRESSES,
            "environment": "${env:PLANTED_KEY}",
            "database": "${env:DATABASE}",
            "file": "x ${secret:FILE}",
            "command": "${secret:COMMAND}",
        }
    )
    text = tiny.read_text().replace("timeout_s: null}]", f"timeout_s: null, arguments: {config}}}]")
    sources = f"{{FILE: {{file: {secret}}}, COMMAND: {{command: [echo, cO4mmand5ecret]}}}}"
    text = text.replace("run: {", f"run: {{secrets: {sources}, checkpoint_every: 1, ")
    tiny.write_text(text + "loggers: [{name: tensorboard}]\n")
    return tiny


def forms(secret):
    raw = secret.encode()
    yield from (secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1])
    for offset in range(3):
        encoded = base64.b64encode(b"." * offset + raw).decode().rstrip("=")
        yield encoded[offset + 1 : len(encoded) - 2]


def leaks(text):
    return sorted({secret for secret in SECRETS for form in forms(secret) if form in text})


@pytest.mark.parametrize("permissions", ["group"])
def test_planted_secrets_are_in_nothing_that_a_run_leaves_or_says(tiny, rl, tmp_path, monkeypatch, permissions):
    monkeypatch.setenv("PLANTED_KEY", "eN1fromenvironment")
    monkeypatch.setenv("DATABASE", "postgres://me:https-looks-like-none-dB2pw@host/db")
    config, run = plant(tiny, tmp_path), tmp_path / "run"
    checked = rl("check", config)
    crashed = rl("run", config, f"run.permissions={permissions}", check=False)
    assert crashed.returncode == 1, crashed.stderr
    assert "401 for" in crashed.stderr
    shown = [rl(*command, check=False) for command in (("runs", tmp_path), ("plugins",), ("resume", run, "run.sed=1"))]
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert {k: v for k, v in seen.items() if k in TYPED} == TYPED  # masked in texts, never in values
    assert (seen["file"], seen["command"], seen["environment"]) == (
        "x fI3le5ecret",
        "cO4mmand5ecret",
        "eN1fromenvironment",
    )

    said = "".join(done.stdout + done.stderr for done in (checked, crashed, *shown))
    assert leaks(said) == []
    files = [path for path in run.rglob("*") if path.is_file() and path.name != "secrets.json"]
    assert len(files) > 10
    assert {str(p.relative_to(run)): found for p in files if (found := leaks(p.read_bytes().decode("latin1")))} == {}
    text = (run / "config.yaml").read_text()
    kept = ("${env:PLANTED_KEY}", "${env:DATABASE}", "x ${secret:FILE}", "${secret:COMMAND}")
    assert [one for one in kept if one not in text] == []
    assert "https://me:${secret:typed.rewards.0.arguments.addresses.pair}@example.org/x" in text

    modes = {stat.S_IMODE(path.stat().st_mode) for path in [run, *run.rglob("*")] if path.is_dir()}
    assert modes == {FOLDER[permissions]}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {FILE[permissions]}
    assert stat.S_IMODE((run / "secrets.json").stat().st_mode) == 0o600

    moved = tmp_path / "moved"
    shutil.move(run, moved)
    resumed = rl("resume", moved)
    assert leaks(resumed.stdout + resumed.stderr) == []
    assert [row["step"] for row in metrics_of(moved)] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "seen.json").read_text()) == seen
    assert "changed since" not in resumed.stderr


def test_another_value_of_a_variable_is_noticed_on_resume(tiny_sft, rl, tmp_path, monkeypatch):
    other = tmp_path / "other.jsonl"
    shutil.copy(tmp_path / "rows.jsonl", other)
    monkeypatch.setenv("ROWS", "rows")
    monkeypatch.setenv("RATE", "1.0e-2")
    text = tiny_sft.read_text().replace(str(tmp_path / "rows.jsonl"), "'${env:ROWS}.jsonl'")
    tiny_sft.write_text(text.replace("learning_rate: 1.0e-2", "learning_rate: '${env:RATE}'"))
    rl("run", tiny_sft, "run.checkpoint_every=2")
    written = (tmp_path / "run" / "config.yaml").read_text()
    assert f"path: {tmp_path}/${{env:ROWS}}.jsonl" in written
    assert "rows" not in (tmp_path / "run" / "environment.json").read_text()
    monkeypatch.setenv("ROWS", "other")
    refused = rl("resume", tmp_path / "run", "run.steps=5", check=False)
    assert refused.returncode == 2
    assert re.search(r"data.path: as it was → another value of \$\{env:…\}\n\s+the checkpoint's", refused.stderr)
    monkeypatch.setenv("ROWS", "rows")
    monkeypatch.setenv("RATE", "2.0e-2")
    resumed = rl("resume", tmp_path / "run", "run.steps=5")
    assert "changed since the run was started: algorithm.learning_rate: as it was → another value" in resumed.stderr
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


@pytest.mark.parametrize(("permissions", "umask"), [("private", 0o000), ("group", 0o077)])
def test_a_run_directory_has_the_mode_that_the_config_says(tiny_sft, tmp_path, cluster, permissions, umask):
    """Whatever umask the command has: what it writes, and what workers write that another process started."""
    folder = tmp_path / "new" / "run"
    before = os.umask(umask)
    try:
        assert run(str(tiny_sft), [f"run.permissions={permissions}", "run.steps=2", f"run.directory={folder}"]) == 0
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    paths = [folder, *folder.rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {FOLDER[permissions]}
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {FILE[permissions]}
    assert {"model.safetensors", "train-0.log", "state.json", "metrics.jsonl"} <= {path.name for path in paths}
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o777 & ~umask  # not the run's


def test_workers_mask_what_the_driver_knows_in_their_logs(cluster, tmp_path):
    logs = tmp_path / "run" / "logs"
    deadlines = Deadlines(start_s=300.0, call_s=60.0)
    pool = WorkerPool(manifest=load_registry().manifest(), logs=logs, deadlines=deadlines)
    remember_secrets(["wO5rkerplanted"])
    one = Resources(ranks=1, replicas=0, gpus=0, nodes=1, threads=1, generator_threads=1)
    rank = SimpleNamespace(component=SimpleNamespace(factory="frail_workers:Rank"), config=Options())
    try:
        with run_folder(tmp_path / "run", "group"):
            pool.prepare(one)
            pool.build(pool.trainers, rank, kind="train", context=WorkerContext(0, 1, "", 0))
            pool.get([pool.trainers[0].call.remote("tell", "connecting with wO5rkerplanted")])
    finally:
        pool.close()
    text = (logs / "train-0.log").read_text()
    assert "connecting with ***" in text
    assert "wO5rkerplanted" not in text
    assert stat.S_IMODE((logs / "train-0.log").stat().st_mode) == 0o660
