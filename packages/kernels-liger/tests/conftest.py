"""Triton's interpreter takes the place of a GPU.

Nothing here is collected where Liger is not installed: the package has a test environment of its own.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("liger_kernel") else ["test_*.py"]

if find_spec("liger_kernel"):
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of Triton
