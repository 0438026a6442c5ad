"""``state.json`` and ``manifest.json`` with anything in them: read as written, or an error that names the key."""

import json
import os
import shutil
import zlib
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_core.errors import RLError
from rl_core.training.checkpoint import CheckpointStore
from rl_core.training.manifest import damage
from rl_core.training.state import RunState, read_state

STATE = RunState("train", step=3, position=12, weights_version=3, fingerprint="ab", algorithm={"b": [1]}, metrics={})


def save(folder, state=STATE, **options):
    return CheckpointStore(folder, **options).save(state, lambda path: (path / "w.bin").write_bytes(b"abc"))


def seal(checkpoint, **changes):
    """Write the manifest anew, as somebody would who knows how; the checksum is that of the documented format."""
    content = json.loads((checkpoint / "manifest.json").read_text()) | changes
    for name in content["files"]:
        data = (checkpoint / name).read_bytes()
        content["files"][name] = {"bytes": len(data), "crc32": zlib.crc32(data)}
    content = {key: value for key, value in content.items() if value is not None and key != "crc32"}
    covered = content["files"] if content.get("format") == 2 else content
    content["crc32"] = zlib.crc32(json.dumps(covered, sort_keys=True).encode())
    (checkpoint / "manifest.json").write_text(json.dumps(content) + "\n")


def test_a_sealed_checkpoint_is_a_good_one(tmp_path):
    path = save(tmp_path)
    seal(path)
    assert damage(path) is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"step": "3"}, "step must be a whole number from 0 on, not '3'"),
        ({"step": -1}, "step must be a whole number from 0 on, not -1"),
        ({"step": True}, "step must be a whole number from 0 on, not True"),
        ({"step": 3.0}, "step must be a whole number from 0 on, not 3.0"),
        ({"position": None}, "position must be a whole number from 0 on, not None"),
        ({"weights_version": [3]}, "weights_version must be a whole number from 0 on, not [3]"),
        ({"stage": 1}, "stage must be text, not 1"),
        ({"fingerprint": {}}, "fingerprint must be text, not {}"),
        ({"algorithm": []}, "algorithm must be an object, not []"),
        ({"metrics": {"loss": "low"}}, "metrics must be an object of numbers, not {'loss': 'low'}"),
        ({"optimizer": 1}, "the key 'optimizer' is unknown; another version wrote it"),
        ({"format": 2}, "format is 2, and this version reads 1; another version wrote it"),
        ({"format": "1"}, "format is '1', and this version reads 1; another version wrote it"),
    ],
)
def test_a_wrong_value_in_the_state_is_named_with_its_file_and_key(tmp_path, changes, problem):
    path = save(tmp_path)
    file = path / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(RLError) as raised:
        read_state(path)
    assert str(raised.value) == (
        f"{file} is damaged: {problem}\n    restore the checkpoint from a copy, or remove {path} to use the one before"
    )


@pytest.mark.parametrize("key", ["stage", "step", "position", "weights_version"])
def test_a_missing_key_of_the_state_is_named(tmp_path, key):
    path = save(tmp_path)
    file = path / "state.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != key}))
    with pytest.raises(RLError, match=f"state.json is damaged: the key '{key}' is missing"):
        read_state(path)


def test_a_state_of_an_older_version_names_no_format_and_is_read(tmp_path):
    path = save(tmp_path)
    file = path / "state.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "format"}))
    assert read_state(path) == STATE


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([*json.loads(STATE.to_json()), "files", "crc32", "other"])


@settings(max_examples=100)
@given(key=KEYS, value=VALUES | st.just(...))
def test_any_state_is_either_read_with_the_right_types_or_refused(tmp_path_factory, key, value):
    path = save(tmp_path_factory.mktemp("s"))
    document = json.loads((path / "state.json").read_text())
    changed = {k: v for k, v in document.items() if k != key} if value is ... else document | {key: value}
    (path / "state.json").write_text(json.dumps(changed))
    try:
        found = read_state(path)
    except RLError as error:
        said, found = str(error), None
    if found is None:
        assert said.startswith(f"{path}/state.json is damaged: ")
    else:
        assert [type(found.step), type(found.position), type(found.stage)] == [int, int, str]
        read = {k: v for k, v in asdict(found).items() if k in changed}
        changed.pop("format", None)
        assert json.dumps(read, sort_keys=True) == json.dumps(changed, sort_keys=True)
    shutil.rmtree(path.parent)


@settings(max_examples=100)
@given(key=KEYS, value=VALUES, inside=st.booleans(), sealed=st.booleans())
def test_any_manifest_is_either_true_or_refused(tmp_path_factory, key, value, inside, sealed):
    path = save(tmp_path_factory.mktemp("m"))
    content = json.loads((path / "manifest.json").read_text())
    before = json.loads(json.dumps(content))
    (content["files"]["w.bin"] if inside else content)[key] = value
    if sealed:
        content.pop("crc32", None)
        content["crc32"] = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    (path / "manifest.json").write_text(json.dumps(content) + "\n")
    try:
        assert CheckpointStore(path.parent, stage="train").latest() == path
    except RLError:
        assert content != before
    else:
        # What is sealed anew may have more keys; what it says of this checkpoint is what was written.
        assert {k: content[k] for k in before if k != "crc32"} == {k: before[k] for k in before if k != "crc32"}
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": ' + "9" * 5000 + "}", "\ud800", "", "null", "3"])
@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_a_file_that_is_no_json_object_is_damage(tmp_path, name, text):
    path = save(tmp_path)
    (path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    if name == "state.json":
        seal(path)
        with pytest.raises(RLError, match=r"state\.json is damaged: "):
            read_state(path)
    else:
        with pytest.raises(RLError, match=r"every checkpoint in .* is damaged\n    step-000003: manifest.json "):
            CheckpointStore(tmp_path).latest()


def test_swapped_checkpoints_are_refused(tmp_path):
    first, second = (save(tmp_path, RunState("train", step=n, position=n, weights_version=n)) for n in (1, 2))
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    for step in (None, 1, 2):
        with pytest.raises(RLError) as raised, CheckpointStore(tmp_path).reading(step):
            pass
        name, true = (first, second) if step == 1 else (second, first)
        assert str(raised.value) == (
            f"{name} is the checkpoint of step {true.name[-1]}: the folder was renamed, or swapped with another\n"
            f"    give it its name again: {true}"
        )


def test_a_checkpoint_of_another_stage_is_refused(tmp_path):
    path = save(tmp_path)
    with pytest.raises(RLError) as raised:
        CheckpointStore(tmp_path, stage="rl").latest()
    assert str(raised.value) == (
        f"{path} is a checkpoint of stage 'train', not of 'rl': it was moved here\n"
        "    move it back, and restore the one that belongs here"
    )
    assert CheckpointStore(tmp_path, stage="train").latest() == path


def test_a_checkpoint_of_an_older_version_is_read_with_a_warning(tmp_path, caplog):
    path = save(tmp_path)
    seal(path, format=2, stage=None, step=None)
    assert CheckpointStore(tmp_path, stage="train").latest() == path
    assert caplog.messages == [
        f"checkpoint {path} is of an older version: its manifest names no stage and no step; those of state.json are "
        "taken"
    ]
    path.rename(tmp_path / "step-000009")
    with pytest.raises(RLError, match="step-000009 is the checkpoint of step 3"):
        CheckpointStore(tmp_path, stage="train").latest()


def test_a_manifest_of_an_unknown_format_is_named(tmp_path):
    path = save(tmp_path)
    seal(path, format=4)
    assert damage(path) == "manifest.json has the format 4, and this version reads 2 and 3"


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "w.bin", "more"])
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_a_pipe_or_a_link_in_a_checkpoint_is_damage_and_nobody_waits_for_it(tmp_path, name, kind):
    path = save(tmp_path / "c")
    size = (path / name).stat().st_size if name != "more" else 0
    (path / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path / name)
    else:
        (tmp_path / "far").write_bytes(b"x" * size)
        (path / name).symlink_to(tmp_path / "far")
    found = damage(path)
    assert found is not None
    assert found.startswith(name)
