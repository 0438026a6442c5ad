"""``ray start`` as a child of the process that wants it: ``ray_start.py PARENT ARGUMENT…``.

It ends with process ``PARENT`` (0: it does not), by SIGTERM, at which ``ray start --block`` ends what it started.
Standard library and Ray only.
"""

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LOOK_EVERY_S = 1.0


def end_with(parent: int) -> None:
    """Have this process get SIGTERM when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has ended meanwhile
            sys.exit(1)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    parent = int(sys.argv[1])
    if parent:
        end_with(parent)
    sys.argv = ["ray", *sys.argv[2:]]
    from ray.scripts.scripts import main

    sys.exit(main())
