"""What a late process was doing, from the stacks that faulthandler wrote."""

from __future__ import annotations

import os
import re
import sysconfig

_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in ', re.MULTILINE)


def place_in(stacks: str) -> str:
    """``file:line`` of the innermost frame of the main thread that is not in Python's own library; or empty."""
    main = stacks.rpartition("most recent call first")[2]
    frames = [(found["file"], found["line"]) for found in _FRAME.finditer(main)]
    library = sysconfig.get_path("stdlib") + os.sep
    packages = sysconfig.get_path("purelib") + os.sep
    own = [(file, line) for file, line in frames if file.startswith(packages) or not file.startswith(library)]
    return "{}:{}".format(*(own or frames)[0]) if frames else ""
