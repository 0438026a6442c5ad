"""Nothing that waits for another process waits without end."""

import ast

from support import ROOT

WAITS = {"ray.get", "ray.wait", "subprocess.run", "subprocess.check_output", "subprocess.check_call"}
ALREADY_ANSWERED = {
    "packages/core/src/rl_core/cluster/calls.py: _dead_peer: ray.get",
}
INSIDE_A_CALL_THAT_HAS_ONE = {
    "packages/core/src/rl_core/cluster/worker.py: call: ray.get",
    "packages/core/src/rl_core/cluster/worker.py: call_each: ray.get",
    "packages/rollout/src/rl_rollout/transports/ipc.py: __call__: ray.get",
}
"""Made in a worker: the driver ends the worker when its call is late."""


def waits():
    """``(place, keywords)`` of every call that waits for another process."""
    for path in sorted(ROOT.glob("packages/*/src/**/*.py")):
        text = path.read_text()
        if "/rl_plugin_kit/" in str(path) or not any(name in text for name in WAITS):
            continue
        functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        for function in functions:
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in WAITS:
                    place = f"{path.relative_to(ROOT)}: {function.name}: {ast.unparse(node.func)}"
                    yield place, {keyword.arg for keyword in node.keywords}


def test_every_wait_for_a_remote_call_or_a_program_has_a_deadline():
    found = {place for place, keywords in waits() if "timeout" not in keywords}
    assert found == ALREADY_ANSWERED | INSIDE_A_CALL_THAT_HAS_ONE
