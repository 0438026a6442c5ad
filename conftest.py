"""What all tests share: one local Ray cluster per session, and ways to call `rl`."""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import tempfile
from types import SimpleNamespace

import pytest
from commands import Command
from hypothesis import HealthCheck, settings
from rl_secrets.redaction import forget_secrets
from support import EXAMPLES, environment
from warm_workers import warm_python

# No test fails because the machine is busy, and every run of the suite tries the same examples.
settings.register_profile("any machine", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# Compiled layers are kept apart by the vector instructions that PyTorch is told to use; its own cache mixes them.
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR",
    f"{tempfile.gettempdir()}/torchinductor-{os.getuid()}-{os.environ.get('ATEN_CPU_CAPABILITY', 'own')}",
)
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# No driver prints what workers write, so nothing has to look ten times a second into the logs of hundreds of them.
os.environ.setdefault("RAY_LOG_MONITOR_MANY_FILES_THRESHOLD", "0")
os.environ.setdefault("LOG_NAME_UPDATE_INTERVAL_S", "1e9")


def pytest_addoption(parser):
    parser.addoption("--nightly", action="store_true", help="run the tests marked nightly, and only those")


def seed_generators(seed):
    """The global generators of Python and, where they are imported, of NumPy and PyTorch."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Fixtures draw the same numbers whatever ran before."""
    seed_generators(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """A test draws the same numbers whether it or another made the fixtures that it shares."""
    seed_generators(1)
    return (yield)


def pytest_collection_modifyitems(config, items):
    """Whole files go to one of two processes, in this order: the longest first, so that both end together."""
    nightly = config.getoption("--nightly")
    other = [item for item in items if bool(item.get_closest_marker("nightly")) != nightly]
    if other:
        config.hook.pytest_deselected(items=other)
        items[:] = [item for item in items if bool(item.get_closest_marker("nightly")) == nightly]
    files = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    runs = ("as_a_user", "examples", "variants", "megatron_runs", "environment_examples", "resume", "run")
    first = [f"test_{name}.py" for name in runs]

    def rank(path):
        return first.index(path.name) if path.name in first else len(first)

    items[:] = [item for path in sorted(files, key=rank) for item in files[path]]


@pytest.fixture(autouse=True)
def no_secrets():
    """What one test has as a secret is an ordinary word in another."""
    yield
    forget_secrets()


@pytest.fixture(scope="module", autouse=True)
def few_objects():
    """Backends collect garbage when they close: not among all that was imported and gathered before a file's tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A Ray cluster that runs started by tests join; returns its address."""
    import ray

    log = tmp_path_factory.mktemp("workers") / "warm.log"
    with warm_python(log) as python:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", python)
            context = ray.init(
                address="local",  # not one that happens to run on this machine
                num_cpus=8,
                include_dashboard=False,
                object_store_memory=256 * 2**20,
                log_to_driver=False,
                logging_level=40,
            )
        yield context.address_info["gcs_address"]
        ray.shutdown()


@pytest.fixture
def start_rl(cluster, tmp_path, tmp_path_factory):
    """Start the command line, joining the test cluster, without waiting; leftovers are killed."""
    started = []

    def start(*arguments, apart=False):
        folder = tmp_path_factory.mktemp("command")
        started.append(Command(arguments, cwd=tmp_path, env=environment(cluster), folder=folder, apart=apart))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def rl(start_rl):
    """Run the command line to its end; returns its exit code and outputs."""

    def call(*arguments, check=True, timeout=600):
        process = start_rl(*arguments, apart=True)
        stdout, stderr = process.communicate(timeout)
        if check:
            assert process.returncode == 0, f"rl {' '.join(map(str, arguments))}\n{stdout}\n{stderr}"
        return SimpleNamespace(returncode=process.returncode, stdout=stdout, stderr=stderr)

    return call


TINY = """\
run: {{name: tiny, directory: {run}, steps: 4, cpus: 1}}
model:
  init: {{architecture: qwen2, hidden_size: 32, layers: 2, heads: 2, kv_heads: 1, ffn: 64}}
  max_length: 16
tokenizer: {{name: characters, vocab_size: 32}}
backend: {{name: fsdp2}}
generator: {{name: hf, max_new_tokens: 4}}
algorithm: {{name: grpo, prompts_per_step: 4, group_size: 4, learning_rate: 1.0e-3}}
data: {{name: python, function: {examples}/add2x.py:questions}}
rewards: [{{name: function, function: {reward}, timeout_s: null}}]  # in the driver: a process takes 0.3 s to start
"""


@pytest.fixture
def tiny(tmp_path):
    """A config file for a GRPO run of seconds: a random model is rewarded for writing ones."""
    reward = tmp_path / "my_reward.py"
    reward.write_text("def ones(samples):\n    return [s.completion.count('1') / 4 for s in samples]\n")
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(run=tmp_path / "run", examples=EXAMPLES, reward=f"{reward}:ones"))
    return path


TINY_SFT = """\
run: {{name: tiny-sft, directory: {run}, steps: 4, cpus: 1}}
model:
  init: {{architecture: qwen2, hidden_size: 32, layers: 2, heads: 2, ffn: 64}}
  max_length: 16
tokenizer: {{name: characters, vocab_size: 32}}
backend: {{name: fsdp2}}
algorithm: {{name: sft, sequences_per_step: 8, learning_rate: 1.0e-2}}
data: {{name: jsonl, path: {data}}}
"""


@pytest.fixture
def tiny_sft(tmp_path):
    """A config file for an SFT run of seconds, on a JSONL file."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}+1=", "completion": str(i + 1)}) + "\n" for i in range(40)))
    path = tmp_path / "sft.yaml"
    path.write_text(TINY_SFT.format(run=tmp_path / "run", data=data))
    return path
