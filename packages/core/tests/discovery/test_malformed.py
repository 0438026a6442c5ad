"""One installed package that is damaged or misbehaves is one line of the list; everything else works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from rl_core.cli.main import main
from rl_core.discovery.registry import load_registry

GROUP = "rl_core.plugins"
PLUGIN = """
from rl_core.component import Component
from rl_core.hookspecs import hookimpl

{top}

@hookimpl
def register_rewards():
    {hook}
    return [Component("reward", "length", "a:B", "a:C", "s")]
"""


def plugin(top="", hook="pass"):
    return PLUGIN.format(top=top, hook=hook)


@pytest.fixture
def damaged(site, monkeypatch):
    """``damaged(**files)`` writes a dist-info folder with just these files, next to a plugin that is fine."""

    def write(**files: str | bytes) -> None:
        info = site / "rl_x_odd-1.0.dist-info"
        info.mkdir()
        for name, content in files.items():
            path = info / {"points": "entry_points.txt"}.get(name, name)
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def plugins(monkeypatch):
    monkeypatch.delenv("RL_PLUGINS", raising=False)
    return {one.package: one for one in load_registry().plugins}


METADATA = "Metadata-Version: 2.1\nName: rl-x-odd\nVersion: 1.0\n"
POINTS = f"[{GROUP}]\nodd = rl_x_odd.plugin\n"


@pytest.mark.parametrize(
    ("files", "package", "reason"),
    [
        ({"METADATA": METADATA, "points": f"[{GROUP}]\nodd\n"}, "rl-x-odd", "its entry_points.txt cannot be read: "),
        ({"points": f"[{GROUP}]\nodd\n"}, "odd", "its entry_points.txt cannot be read: "),
        (
            {"METADATA": METADATA, "points": f"[{GROUP}]\nodd = 1:2:3\n"},
            "rl-x-odd",
            "its entry point 'odd' cannot be read: '1:2:3'",
        ),
        (
            {"METADATA": METADATA, "points": f"[{GROUP}]\nodd =\n"},
            "rl-x-odd",
            "its entry point 'odd' cannot be read: ''",
        ),
        (
            {"METADATA": METADATA, "points": POINTS.encode() + b"\xff = x\n"},
            "rl-x-odd",
            "its entry_points.txt cannot be ",
        ),
        ({"METADATA": b"Name: \xff\xfe\n", "points": POINTS}, "odd", "its metadata cannot be read: UnicodeDecodeError"),
        (
            {"METADATA": METADATA + 'Requires-Dist: rl-core; python_version ~= "x"\n', "points": POINTS},
            "rl-x-odd",
            "its metadata holds a requirement that cannot be read: ",
        ),
        (
            {"METADATA": METADATA + "Requires-Dist: ???\n", "points": POINTS},
            "rl-x-odd",
            "its metadata holds a requirement that cannot be read: '???'",
        ),
        ({"points": POINTS}, "odd", "importing rl_x_odd.plugin failed: "),
    ],
)
def test_damaged_metadata_breaks_its_plugin_and_no_other(files, package, reason, damaged, install, monkeypatch):
    install("rl-x-good", plugin())
    damaged(**files)
    found = plugins(monkeypatch)
    assert found[package].status in ("broken", "incompatible")
    assert found[package].reason.startswith(reason)
    assert found["rl-x-good"].status == "ok"
    assert main(["plugins"]) == 0


@pytest.mark.parametrize(
    "files",
    [
        {"METADATA": METADATA, "points": "[console_scripts]\nnothing here is an entry point\n"},
        {"METADATA": b"\xff", "points": b"\xff"},
        {"points": "[console_scripts]\na = b:c\n"},
    ],
)
def test_damaged_metadata_of_a_package_that_is_no_plugin_is_none_of_ours(files, damaged, install, monkeypatch):
    install("rl-x-good", plugin())
    damaged(**files)
    found = plugins(monkeypatch)
    assert found["rl-x-good"].status == "ok"
    assert not {"rl-x-odd", "unnamed"} & set(found)


def test_an_odd_version_is_shown_as_it_is(install, monkeypatch):
    install("rl-x-odd", plugin(), version="not a version")
    found = plugins(monkeypatch)["rl-x-odd"]
    assert (found.status, found.version) == ("ok", "not a version")
    assert main(["doctor"]) in (0, 3)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("class Odd(BaseException): pass\nraise Odd('x')", "Odd: x"),
        (
            "class Mute(Exception):\n    def __str__(self): raise ValueError\nraise Mute",
            "Mute: (its text cannot be shown)",
        ),
    ],
)
def test_whatever_a_plugin_raises_breaks_only_itself(line, reason, install):
    install("rl-x-raise", plugin(top=line))
    install("rl-x-good", plugin())
    found = {one.package: one for one in load_registry().plugins}
    assert found["rl-x-raise"].reason.startswith(f"importing rl_x_raise.plugin failed: {reason}")
    assert found["rl-x-good"].status == "ok"


def test_a_hook_that_exits_breaks_its_plugin(install):
    install("rl-x-exit", plugin(hook="raise SystemExit(3)"))
    (found,) = (one for one in load_registry().plugins if one.package == "rl-x-exit")
    assert (found.status, found.reason[:41]) == ("broken", "register_rewards failed: SystemExit: 3 (p")


def test_what_a_plugin_prints_is_not_part_of_any_output(install, capsys):
    install("rl-x-loud", plugin(top="print('hello from import')", hook="print('hello from hook')"))
    assert main(["plugins", "--json"]) == 0
    output = capsys.readouterr()
    assert "rl-x-loud" in [one["package"] for one in json.loads(output.out)["plugins"]]
    assert "hello from import" in output.err
    assert "hello from hook" in output.err


def test_what_a_plugin_writes_to_the_descriptor_of_standard_output_is_not_part_of_any_output(install, site):
    loud = "import os, subprocess\n{}os.write(1, b'by hand\\n')\n{}subprocess.run(['echo', 'by a child'])"
    install("rl-x-loud", plugin(top=loud.format("", ""), hook=loud.format("    ", "    ")))
    path = os.pathsep.join([str(site), *sys.path])
    code = "import sys; from rl_core.cli.main import main; sys.exit(main(['plugins', '--json']))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONPATH": path}, text=True, check=True
    )
    assert "rl-x-loud" in [one["package"] for one in json.loads(done.stdout)["plugins"]]
    assert done.stderr.count("by hand\n") == done.stderr.count("by a child\n") == 2


def test_what_a_plugin_changes_in_the_process_is_put_back(install, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    install("rl-x-handy", plugin(top="import os, signal\nos.chdir('/')\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)"))
    (found,) = (one for one in load_registry().plugins if one.package == "rl-x-handy")
    assert found.status == "ok"
    assert os.getcwd() == str(tmp_path)
    assert {one: signal.getsignal(one) for one in before} == before
    assert caplog.messages == [
        "rl-x-handy: importing rl_x_handy.plugin changed the working directory and the handler of SIGTERM, "
        "which was put back"
    ]


def test_a_plugin_that_takes_long_is_named(install, monkeypatch, caplog):
    monkeypatch.setattr("rl_core.discovery.containment.SLOW_S", 0.01)
    install("rl-x-slow", plugin(top="import time\ntime.sleep(0.05)"))
    load_registry()
    assert "rl-x-slow: importing rl_x_slow.plugin takes more than 0.01 s" in caplog.messages


def test_a_plugin_that_hangs_is_named_while_it_hangs(install, site):
    install("rl-x-hang", plugin(top="import time\ntime.sleep(1000)"))
    code = (
        "import sys; from rl_core.discovery import containment; containment.SLOW_S = 0.1; "
        "from rl_core.cli.main import main; sys.exit(main(['plugins']))"
    )
    path = os.pathsep.join([str(site), *sys.path])
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}, text=True
    ) as hanging:
        try:
            assert hanging.stderr.readline() == "rl-x-hang: importing rl_x_hang.plugin takes more than 0.1 s\n"
            assert hanging.poll() is None
        finally:
            hanging.kill()


def test_of_two_packages_of_one_name_the_first_on_the_path_counts(install, site, tmp_path, monkeypatch):
    from rl_plugin_kit.packages import write_plugin

    install("rl-x-twice", plugin(), version="2.0")
    other = tmp_path / "later"
    write_plugin(other, "rl-x-twice", files={"plugin.py": plugin()}, version="1.0")
    monkeypatch.syspath_prepend(other)
    monkeypatch.syspath_prepend(site)
    assert [one.version for one in load_registry().plugins if one.package == "rl-x-twice"] == ["2.0"]
