"""Commands on terminals that know ASCII only, are narrow, or are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

RL = [sys.executable, "-c", "import sys; from rl_core.cli.main import main; sys.exit(main())"]
PRINTED = """
import sys
from rl_core.cli.streams import prepare
prepare()
print("3 → 4 × 5 … “é” │─┼ ⠋ 漢 \\udcff")
"""


def run(*arguments, env=None, shell="", cwd=None):
    command = [*RL, *arguments]
    if shell:
        command = ["sh", "-c", f'"$0" "$@" {shell}', *command]
    return subprocess.run(
        command, capture_output=True, env={**os.environ, **(env or {})}, cwd=cwd, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", '3 -> 4 x 5 ... "e" |-+ * ? ?'),
        ("latin-1", '3 -> 4 × 5 ... "é" |-+ * ? ?'),
        ("utf-8", "3 → 4 × 5 … “é” │─┼ ⠋ 漢 ?"),
    ],
)
def test_characters_that_the_terminal_lacks_are_written_in_ascii(encoding, expected):
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", PRINTED], capture_output=True, env=env, check=True)
    assert done.stdout.decode(encoding) == expected + "\n"


@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"TERM": "dumb", "COLUMNS": "20"},
        {"NO_COLOR": "1", "COLUMNS": "1"},
        {"HOME": "/nowhere", "TZ": "No/Such:Zone"},
    ],
    ids=str,
)
def test_every_terminal_shows_the_plan_of_a_config(env, tiny):
    done = run("check", str(tiny), env=env)
    assert done.returncode == 0, done.stderr.decode()
    assert b"config ok" in done.stdout
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["| head -c 1", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_ends_no_command_in_a_traceback(shell):
    done = run("plugins", "--json", shell=shell)
    assert b"Traceback" not in done.stderr
    assert b"Error" not in done.stderr


LOUD = """
import os, sys
from rl_core.cli.streams import prepare
prepare()
for stream in (sys.stdout, sys.stderr):
    while True:
        print("x" * 1000, file=stream, flush=True)
        if os.path.samestat(os.fstat(stream.fileno()), os.stat(os.devnull)):
            break
os.system("echo from a child; echo from a child >&2")
print("still here")
open(sys.argv[1], "w").write("done")
"""


@pytest.mark.parametrize("env", [{}, {"PYTHONUNBUFFERED": "1"}], ids=str)
def test_a_process_goes_on_after_its_reader_has_gone(env, tmp_path):
    command = ["sh", "-c", '("$0" -c "$1" "$2" 2>&1; echo $? >"$2.code") | head -n 1']
    done = subprocess.run(
        [*command, sys.executable, LOUD, str(tmp_path / "file")],
        capture_output=True,
        env={**os.environ, **env},
        check=True,
        timeout=60,
    )
    assert done.stdout == b"x" * 1000 + b"\n"
    assert (tmp_path / "file").read_text() == "done"
    assert (tmp_path / "file.code").read_text() == "0\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_what_does_not_fit_on_a_disk_is_not_dropped_in_silence():
    assert run("plugins", "--json", shell=">/dev/full").returncode == 1


def test_a_file_that_is_opened_later_does_not_get_what_is_printed(tmp_path):
    code = (
        "import os, sys; from rl_core.cli.streams import prepare; prepare()\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w'); os.system('echo printed'); print('printed'); file.write('mine')"
    )
    subprocess.run(["sh", "-c", '"$0" -c "$1" <&- >&-', sys.executable, code], check=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_working_directory_that_was_removed_is_an_environment_problem(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["sh", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(gone), *RL, "check", "c.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr == "error: the working directory was removed\n    cd to a folder that exists\n"


def test_json_is_json_on_any_terminal():
    done = run("plugins", "--json", env={"PYTHONIOENCODING": "ascii"})
    assert json.loads(done.stdout)["plugins"]
