from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(__file__))  # for the modules that several tests share
from config_kit import base, config_of, folder, hooks, more_plugins, problems_of, registry, run_check

__all__ = ["base", "config_of", "folder", "hooks", "more_plugins", "problems_of", "registry", "run_check"]
