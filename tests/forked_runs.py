"""`rl` in forks of a process that has imported everything (faults/drivers.py), and comparing what such runs leave."""

import json
import subprocess
import sys
from pathlib import Path

from support import environment, metrics_of


class Drivers:
    """`rl` in forks of a process that has imported everything (see faults/drivers.py)."""

    def __init__(self, folder):
        self._log = folder / "output.txt"
        self._server = subprocess.Popen(
            [sys.executable, Path(__file__).parent / "faults" / "drivers.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(""),
            text=True,
        )

    def rl(self, *argv, **disturbance):
        answer = self.ask(*argv, **disturbance)
        return answer["returncode"], answer["said"], answer["counts"]

    def ask(self, *argv, **disturbance):
        at_once = [[str(a) for a in one] for one in disturbance.pop("at_once", [])]
        command = {"argv": [str(a) for a in argv], "log": str(self._log), "at_once": at_once, **disturbance}
        self._server.stdin.write(json.dumps(command) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline()) | {"said": self._log.read_text()}

    def close(self):
        self._server.stdin.close()
        self._server.wait()


def without_times(rows):
    return [{k: v for k, v in r.items() if not k.startswith("time/") and "per_second" not in k} for r in rows]


def assert_same(run, whole):
    assert without_times(metrics_of(run)) == without_times(metrics_of(whole))
    weights = [(path / "export" / "model.safetensors").read_bytes() for path in (run, whole)]
    assert weights[0] == weights[1]
