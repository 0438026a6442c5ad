"""From templates to files."""

from __future__ import annotations

from pathlib import Path

import pytest
from rl_core.errors import ConfigError, EnvironmentProblem
from rl_plugin_kit.scaffold import write
from rl_plugin_kit.scaffold.kinds import PLUGIN_KINDS
from rl_plugin_kit.scaffold.names import PackageNames, find_kind, package_names

CORE = Path(__file__).resolve().parents[2]


@pytest.fixture
def names() -> PackageNames:
    return package_names(find_kind("reward"), "length")


def refused(names: PackageNames, directory: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        write.write_package(names, directory, core="0.1.0")
    return str(caught.value)


def test_a_package_is_complete(names, tmp_path):
    written = write.write_package(names, tmp_path / "deep" / "new", core="0.1.0")
    assert [str(path) for path in written] == [
        ".github/workflows/test.yml",
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "src/rl_reward_length/__init__.py",
        "src/rl_reward_length/config.py",
        "src/rl_reward_length/plugin.py",
        "src/rl_reward_length/reward.py",
        "tests/test_conformance.py",
        "tests/test_reward.py",
    ]
    found = (path.relative_to(tmp_path / "deep" / "new") for path in (tmp_path / "deep" / "new").rglob("*"))
    assert sorted(path for path in found if (tmp_path / "deep" / "new" / path).is_file()) == written


def test_nothing_that_exists_is_touched(names, tmp_path):
    write.write_package(names, tmp_path / "mine", core="0.1.0")
    readme = tmp_path / "mine" / "README.md"
    readme.write_text("my own words")
    assert refused(names, tmp_path / "mine") == (
        f"{tmp_path}/mine exists already; nothing was written\n    choose another folder with --directory, or remove it"
    )
    assert readme.read_text() == "my own words"


def test_an_empty_folder_and_a_dangling_link_exist_too(names, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("empty", "link"):
        assert refused(names, tmp_path / name).startswith(f"{tmp_path}/{name} exists already; nothing was written\n")
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("below", ["new", "deep/new"])
def test_a_folder_inside_a_file_is_refused(names, tmp_path, below):
    file = tmp_path / "file"
    file.write_text("")
    blocked = (file / below).parent
    assert refused(names, file / below) == f"{file / below} cannot be made: {blocked} is inside or is itself a file"


def test_a_folder_that_cannot_be_written_is_a_problem_of_the_machine(names, tmp_path):
    with pytest.raises(EnvironmentProblem) as caught:
        write.write_package(names, tmp_path / ("x" * 300), core="0.1.0")
    assert str(caught.value) == (
        f"{tmp_path}/{'x' * 300} cannot be written: File name too long: {tmp_path}/{'x' * 300}"
    )


@pytest.mark.parametrize(
    ("version", "expected"),
    [("0.1.0", ">=0.1,<0.2"), ("0.9.3.dev1", ">=0.9,<0.10"), ("1.0", ">=1.0,<2"), ("2.4.1", ">=2.4,<3")],
)
def test_a_package_wants_the_core_it_was_written_for(version, expected):
    assert write.core_range(version) == expected


def test_rl_torch_gets_the_range_of_the_core():
    names = package_names(find_kind("backend"), "mine")
    text = write.render_package(names, core="1.3.0")[Path("pyproject.toml")]
    assert '    "rl-core>=1.3,<2",\n    "rl-torch>=1.3,<2",\n    "torch>=2.11",\n' in text


@pytest.mark.parametrize("kind", PLUGIN_KINDS, ids=lambda kind: kind.name)
def test_ci_installs_the_small_torch_before_what_needs_it(kind):
    text = write.render_package(package_names(kind, "mine"), core="0.1.0")[Path(".github/workflows/test.yml")]
    assert text.index("pip install torch ") < text.index("pip install -e")
    assert "python-version: ${{ matrix.python }}" in text


def test_the_wheel_holds_every_template(tmp_path):
    wheel = pytest.importorskip("hatchling.builders.wheel")
    import zipfile

    built = next(wheel.WheelBuilder(str(CORE)).build(directory=str(tmp_path), versions=["standard"]))
    sources = CORE / "src"
    templates = {str(p.relative_to(sources)) for p in (sources / "rl_plugin_kit/scaffold").rglob(f"*{write.SUFFIX}")}
    assert len(templates) > 40
    assert templates <= set(zipfile.ZipFile(built).namelist())
