"""A disk of a few megabytes, a tmpfs that this process alone sees, and how full it is at each checkpoint."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import rl_core.training.pipeline
from rl_core.training.checkpoint import CheckpointStore
from rl_core.training.manifest import size_of

NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000  # CLONE_NEWNS, CLONE_NEWUSER
RECURSIVE, PRIVATE = 0x4000, 0x40000  # MS_REC, MS_PRIVATE
PAGE = os.sysconf("SC_PAGE_SIZE")


def mount(folder, size):
    """Mount a tmpfs of ``size`` bytes for this process, as root or in a user namespace.

    Raises:
        OSError: neither is possible.
    """
    user, group = os.geteuid(), os.getegid()
    try:
        _call("unshare", NEW_MOUNTS)
    except PermissionError:
        _call("unshare", NEW_USER | NEW_MOUNTS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _call("mount", b"none", b"/", None, RECURSIVE | PRIVATE, None)
    _call("mount", b"small", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode())


def _call(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    types = {"unshare": [ctypes.c_int], "mount": [*[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p]}
    function = libc[name]
    function.argtypes = types[name]
    if function(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


class SmallDisk:
    """Is full when checkpoints ``full`` are due (first and last step), and has too little room for those ``short``.

    ``at_export``: it is full when the trained model is to be exported.

    Attributes:
        seen: the checkpoints that are visible when the one of a step is due.
    """

    def __init__(self, folder, *, size, full=(0, -1), short=(0, -1), at_export=False):
        mount(folder, size)
        self._ballast = Path(folder) / "ballast"
        self._full, self._short, self._at_export = full, short, at_export
        self.seen = {}

    def watch(self):
        """From here on, every checkpoint finds the room that it is meant to."""
        begin = CheckpointStore.begin

        def watched(store, state, write):
            self.seen[state.step] = sorted(path.name for path in store.folder.glob("step-*"))
            self._prepare(state.step, store)
            begin(store, state, write)

        CheckpointStore.begin = watched
        export = rl_core.training.pipeline.export_model

        def watched_export(policy, tokenizer, target):
            self._fill(leave=0)
            export(policy, tokenizer, target)

        if self._at_export:
            rl_core.training.pipeline.export_model = watched_export

    def _prepare(self, step, store):
        self._ballast.unlink(missing_ok=True)
        if self._full[0] <= step <= self._full[1]:
            self._fill(leave=0)
        elif self._short[0] <= step <= self._short[1]:
            # As many bytes as the last checkpoint has, which is not enough: each of its files fills its last page.
            self._fill(leave=size_of(store.folder / store.newest_name()))

    def _fill(self, *, leave):
        with self._ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(PAGE)) == PAGE:
                    pass
            except OSError:
                pass
            file.truncate(max(0, file.tell() - -(-leave // PAGE) * PAGE))
