"""Checkpoints of FSDP2's own layouts and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsdp2_helpers import losses_of, save_without_room, train, train_on_while_saving
from ranks import Ranks
from rl_torch.engine.testing.examples import optimizer_spec, random_batch
from rl_torch.engine.testing.jobs import make_directory


@pytest.mark.parametrize(
    ("saved", "read"),
    [
        ({"tp": 2}, {"dp": 2}),
        ({"dp": 2}, {"tp": 2, "sequence": True}),
        ({"replicate": 2, "dp": 1}, {"cp": 2}),
        ({"cp": 2}, {"replicate": 2, "dp": 1}),
    ],
)
def test_a_checkpoint_is_read_in_another_layout(
    pair: Ranks, tmp_path: Path, saved: dict[str, Any], read: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"batch": random_batch(), "optimizer": optimizer_spec(eps=1e-6)}
    path = make_directory(tmp_path / "saved")
    whole = losses_of(pair(train, **options, steps=4))
    pair(train, **options, steps=2, save=path, config={"parallel": saved})
    continued = losses_of(pair(train, **options, steps=2, restore=path, config={"parallel": read}))
    for ours, theirs in zip(continued, whole[2:], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("config", [{}, {"precision": "fp16"}, {"cpu_offload": True}])
def test_a_checkpoint_written_in_the_background_continues_bit_exactly(
    pair: Ranks, tmp_path: Path, config: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"batch": random_batch(), "optimizer": optimizer_spec()}
    path = make_directory(tmp_path / "saved")
    config = {"async_save": True, **config}
    # The background write must hold the weights of step 2, not those of the steps that follow.
    whole = pair(train_on_while_saving, **options, steps=2, more=2, directory=path, config=config)
    assert whole[0]["returned before it was written"] or whole[0]["written"]
    continued = pair(train, **options, steps=2, restore=path, config=config)
    assert losses_of(continued) == losses_of(whole)[2:]
    for name, weight in whole[0]["weights"].items():
        np.testing.assert_array_equal(continued[0]["weights"][name], weight)


@pytest.mark.parametrize("background", [False, True])
def test_a_disk_that_is_full_on_the_second_rank_is_told_to_the_run_too(
    pair: Ranks, tmp_path: Path, background: bool
) -> None:
    folders = [make_directory(tmp_path / name) for name in ("first", "second")]
    said = pair(save_without_room, batch=random_batch(), directories=folders, config={"async_save": background}, full=1)
    full = f"cannot write {folders[0]}/shards/rank-00001-000.safetensors: No space left on device"
    # In the background a rank hears of its own trouble only; the run asks all of them.
    assert said == [["saved" if background else full, "saved"], [full, "saved"]]
