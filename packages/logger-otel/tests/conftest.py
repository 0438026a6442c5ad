"""Nothing here is collected where the package is not installed: it has a test environment of its own."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("rl_logger_otel") else ["test_*.py"]
