"""A real checkpoint in which any file is cut or has a bit flipped: named before it is used, and never a crash."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsdp2_helpers import backend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rl_core.contracts.backend import Scale
from rl_core.errors import RLError
from rl_core.training.checkpoint import CheckpointStore, RunState
from rl_ray.ports import free_port
from rl_torch.engine.testing.examples import NLL, POLICY, model_spec, optimizer_spec, random_batch
from rl_torch.engine.testing.jobs import weights_of

SETTINGS = settings(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """A backend, and the only checkpoint of a run that trained one step with it."""
    store = CheckpointStore(tmp_path_factory.mktemp("checkpoints"))
    batch = random_batch()
    with backend(0, 1, free_port()) as made:
        made.load(POLICY, model_spec(), optimizer_spec())
        made.train("policy", batch, NLL, Scale.of(batch))

        def write(folder: Path) -> None:
            (folder / "policy").mkdir()
            made.save("policy", str(folder / "policy"))

        yield made, store.save(RunState(stage="train", step=1, position=12, weights_version=1), write)


def complaint(action: Callable[[], Any]) -> str | None:
    """What the action says is wrong, or None; any error but an RLError is passed on."""
    try:
        action()
    except RLError as error:
        return str(error)
    return None


@SETTINGS
@given(which=st.integers(0, 99), place=st.floats(0, 1), bit=st.integers(0, 7), cut=st.booleans())
def test_damage_anywhere_is_named_and_a_backend_that_reads_it_all_the_same_does_not_crash(
    saved: tuple[Any, Path], which: int, place: float, bit: int, cut: bool
) -> None:
    made, checkpoint = saved
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    assert len(files) >= 5
    file = files[which % len(files)]
    whole = file.read_bytes()
    at = min(int(place * len(whole)), len(whole) - 1)
    file.write_bytes(whole[:at] + (b"" if cut else bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]))
    try:
        if (said := complaint(CheckpointStore(checkpoint.parent).latest)) is not None:
            first, second, _ = said.splitlines()
            assert first == f"every checkpoint in {checkpoint.parent} is damaged"
            assert second.startswith(f"    {checkpoint.name}: {file.relative_to(checkpoint)} ")
        else:  # the manifest's last newline says nothing
            assert (file.name, file.read_bytes()) == ("manifest.json", whole.rstrip())
        said = complaint(lambda: made.restore("policy", str(checkpoint / "policy")))
        assert said is None or str(checkpoint / "policy") in said
    finally:
        file.write_bytes(whole)


def test_the_checkpoint_is_read_when_it_is_whole_again(saved: tuple[Any, Path]) -> None:
    made, checkpoint = saved
    made.restore("policy", str(checkpoint / "policy"))
    before, batch = weights_of(made), random_batch()
    made.train("policy", batch, NLL, Scale.of(batch))
    assert CheckpointStore(checkpoint.parent).latest() == checkpoint
    made.restore("policy", str(checkpoint / "policy"))
    for name, weight in weights_of(made).items():
        np.testing.assert_array_equal(weight, before[name])
