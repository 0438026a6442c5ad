"""Parts of tensors in files: any other split reads them, and damage is named."""

import errno
import itertools
import json
import os
import shutil

import pytest
import rl_torch.shards
import torch
from hypothesis import given
from hypothesis import strategies as st
from rl_core.errors import RLError, StorageError
from rl_torch.role_files import read_facts, read_random_state, write_facts, write_random_state, write_together
from rl_torch.shards import BackgroundWrite, Shard, read_shards, save_tensors, write_shards
from safetensors import safe_open


def whole(rows=12, columns=5):
    return torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)


def parts(tensor, cuts, *, name="w", dim=0):
    """The tensor as shards, cut along ``dim`` at ``cuts``."""
    edges = [0, *cuts, tensor.shape[dim]]
    for start, end in itertools.pairwise(edges):
        data = tensor.narrow(dim, start, end - start).clone()
        offset = tuple(start if d == dim else 0 for d in range(tensor.dim()))
        yield Shard(name=name, data=data, shape=tuple(tensor.shape), offset=offset)


def written(folder, shards):
    folder.mkdir(exist_ok=True)
    for rank, shard in enumerate(shards):
        write_shards([shard], folder, rank=rank)
    return folder


def blank(shards):
    return [Shard(s.name, torch.full_like(s.data, -1), s.shape, s.offset) for s in shards]


def complaint(action):
    """What the action says is wrong, or None; any error but an RLError is passed on."""
    try:
        action()
    except RLError as error:
        return str(error)
    return None


splits = st.lists(st.integers(0, 12), max_size=4).map(sorted)


@given(before=splits, after=splits, across=st.booleans())
def test_any_split_is_read_by_any_other(tmp_path_factory, before, after, across):
    folder = tmp_path_factory.mktemp("shards")
    tensor = whole()
    if not list(parts(tensor, before)):
        return
    written(folder, parts(tensor, before))
    wanted = list(parts(tensor, [c for c in after if c <= 5] if across else after, dim=int(across)))
    read = blank(wanted)
    read_shards(read, folder)
    for shard, expected in zip(read, wanted, strict=True):
        assert torch.equal(shard.data, expected.data)
    shutil.rmtree(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_every_bit_comes_back_in_every_type(tmp_path, dtype):
    tensor = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)
    folder = written(tmp_path / "s", parts(tensor, [2, 2, 5]))
    (read,) = blank(list(parts(tensor, [])))
    read_shards([read], folder)
    assert torch.equal(read.data, tensor)


def test_scalars_and_missing_leading_dimensions(tmp_path):
    scalar = Shard("step", torch.tensor(7.0), (), ())
    layers = [Shard("layers", torch.full((2, 3), float(i)), (4, 2, 3), (i, 0, 0)) for i in range(4)]
    folder = written(tmp_path / "s", [scalar, *layers])
    read = [Shard("step", torch.tensor(0.0), (), ()), Shard("layers", torch.zeros(2, 2, 3), (4, 2, 3), (1, 0, 0))]
    read_shards(read, folder)
    assert read[0].data == 7.0
    assert read[1].data[:, 0, 0].tolist() == [1.0, 2.0]


def test_only_the_owner_writes(tmp_path):
    tensor = whole()
    (mine,) = parts(tensor, [])
    other = Shard("w", torch.zeros_like(tensor), mine.shape, mine.offset, owned=False)
    folder = written(tmp_path / "s", [mine, other])
    assert [p.name for p in folder.iterdir()] == ["rank-00000-000.safetensors"]


def test_files_of_a_rank_are_limited_in_size(tmp_path):
    shards = [Shard(f"w{i}", torch.full((100,), float(i)), (100,), (0,)) for i in range(5)]
    write_shards(shards, tmp_path, rank=3, max_bytes=900)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"rank-00003-00{i}.safetensors" for i in range(3)]
    read = blank(shards)
    read_shards(read, tmp_path)
    assert [s.data[0].item() for s in read] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_more_files_than_may_be_open_are_read_one_after_the_other(tmp_path):
    count = 70
    shards = list(parts(whole(count), list(range(1, count))))
    folder = written(tmp_path / "s", shards)
    before = len(os.listdir("/proc/self/fd"))
    (read,) = blank(list(parts(whole(count), [])))
    read_shards([read], folder)
    assert torch.equal(read.data, whole(count))
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_flexible_tensor_takes_what_there_is_and_keeps_the_rest(tmp_path):
    folder = written(tmp_path / "s", parts(whole(4), []))
    larger = Shard("w", torch.full((6, 5), -1.0), (6, 5), (0, 0), flexible=True)
    read_shards([larger], folder)
    assert torch.equal(larger.data[:4], whole(4))
    assert larger.data[4:].eq(-1).all()


def test_a_background_write_is_of_the_moment_it_was_asked_for(tmp_path):
    (shard,) = parts(whole(), [])
    write = BackgroundWrite([shard], tmp_path, rank=0)
    shard.data.zero_()
    write.finish()
    assert not write.is_running
    (read,) = blank([shard])
    read_shards([read], tmp_path)
    assert torch.equal(read.data, whole())


def test_a_tensor_that_is_not_there_is_named(tmp_path):
    folder = written(tmp_path / "s", parts(whole(), []))
    (other,) = parts(whole(), [], name="v")
    with pytest.raises(RLError) as caught:
        read_shards([other], folder)
    assert str(caught.value) == (
        f"{folder} has no tensor v: it was saved from another model\n"
        "    resume with the model and the optimizer of that run"
    )


def test_another_shape_is_refused(tmp_path):
    folder = written(tmp_path / "s", parts(whole(), []))
    (other,) = parts(whole(6), [])
    with pytest.raises(RLError) as caught:
        read_shards([other], folder)
    assert str(caught.value) == (
        f"{folder}: w was saved with shape [12, 5], this model's is [6, 5]\n    resume with the model of that run"
    )


def test_a_rank_whose_file_is_missing_is_noticed(tmp_path):
    folder = written(tmp_path / "s", parts(whole(), [4, 8]))
    (folder / "rank-00001-000.safetensors").unlink()
    with pytest.raises(RLError) as caught:
        read_shards(blank(list(parts(whole(), []))), folder)
    assert str(caught.value) == (
        f"{folder}: 40 of the 60 elements of w are there; a rank's file is missing or extra\n"
        "    resume from another checkpoint, or restore this one from a copy"
    )


def test_a_folder_without_files_is_refused(tmp_path):
    with pytest.raises(RLError) as caught:
        read_shards(list(parts(whole(), [])), tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no rank-*.safetensors files\n    resume from another checkpoint, or restore it"
    )


@given(data=st.data())
def test_damage_is_an_error_with_the_file_or_changes_only_numbers(tmp_path_factory, data):
    folder = written(tmp_path_factory.mktemp("f") / "s", parts(whole(3), [1]))
    file = data.draw(st.sampled_from(sorted(folder.iterdir())), label="file")
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1), label="place")
    if data.draw(st.booleans(), label="cut"):
        del content[place:]
    else:
        content[place] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    file.write_bytes(content)
    read = blank(list(parts(whole(3), [])))
    said = complaint(lambda: read_shards(read, folder))
    # The numbers themselves are what a checkpoint's manifest checks.
    assert said is None or (str(folder) in said and "\n    resume " in said)
    shutil.rmtree(folder.parent)


def test_a_full_disk_is_a_storage_error(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(rl_torch.shards, "save_file", full)
    with pytest.raises(StorageError) as caught:
        save_tensors({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert str(caught.value) == f"cannot write {tmp_path}/a.safetensors: No space left on device"


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError) as caught:
        save_tensors({"a": torch.zeros(1)}, tmp_path / "none" / "a.safetensors")
    assert str(caught.value).startswith(f"cannot write {tmp_path}/none/a.safetensors: ")


def test_headers_say_where_parts_lie(tmp_path):
    folder = written(tmp_path / "s", parts(whole(), [4]))
    with safe_open(folder / "rank-00001-000.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["shards"]) == {"w@4,0": ["w", [12, 5], [4, 0], [8, 5]]}


@given(data=st.data())
def test_damaged_facts_are_an_error_with_the_file(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("facts")
    write_facts(folder, {"format": 2, "role": "policy", "steps": 3, "ranks": 1})
    path = folder / "role.json"
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 2))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    said = complaint(lambda: read_facts(folder, backend="fsdp2", version=2, role="policy"))
    assert said is None or str(folder) in said
    shutil.rmtree(folder)


def test_damaged_random_numbers_are_an_error_with_the_file(tmp_path):
    write_random_state(tmp_path, 0)
    path = tmp_path / "rng-0.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RLError) as caught:
        read_random_state(tmp_path, 0)
    assert str(caught.value).startswith(f"{path} is damaged: SafetensorError: ")
    assert not read_random_state(tmp_path, 1)


def test_what_one_rank_cannot_write_is_an_error_of_all():
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shards")

    with pytest.raises(StorageError) as caught:
        write_together(full)
    assert str(caught.value) == "cannot write shards: No space left on device"
