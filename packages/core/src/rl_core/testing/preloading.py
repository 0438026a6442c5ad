"""What a component names in ``preload`` can be imported in a process that is forked afterwards."""

from __future__ import annotations

import sys

from rl_core.discovery.registry import load_registry
from rl_core.testing.inspection import components_of, label, run_apart

_IMPORT = "import sys; from rl_core.cluster.forkserver.server import load; sys.stdout.write('\\n' + load(sys.argv[1:]))"


def check_preload(package: str) -> None:
    """Importing the modules starts no thread and does not import Ray; left out where something is not installed."""
    registry = load_registry()
    for component in components_of(package):
        if not component.preload or sys.platform != "linux" or registry.missing_imports(component):
            continue
        done = run_apart(_IMPORT, *component.preload)
        where = f"{package}: {label(component)}: Component.preload"
        assert done.returncode == 0, f"{where}: the process that imports it ends:\n{done.stderr.strip()}"
        reason = done.stdout.rpartition("\n")[2]
        assert not reason, f"{where}: {reason}"
