"""The errors a user meets, each with the exit code ``rl`` ends with."""

from __future__ import annotations


class RLError(Exception):
    """A failure explained to the user: what is wrong, where, and what to do next. Exit code 1."""

    exit_code = 1


class ConfigError(RLError):
    """The config (or the command line) is wrong; nothing was started. Exit code 2."""

    exit_code = 2


class EnvironmentProblem(RLError):
    """The machine or the installation cannot do what was asked. Exit code 3."""

    exit_code = 3


class DataError(RLError):
    """A row, file or dataset cannot be used; the message carries ``file:line``. Exit code 1."""


class NonFiniteLoss(RLError):
    """The loss or the gradient norm is not finite; no optimizer step was taken. Exit code 1."""


class WorkerDied(RLError):
    """A worker process ended, hung or lost its device or its peers. Exit code 1.

    Attributes:
        worker: its name (``train-0``), or empty where it is not known.
        role: ``train``, ``generate`` or empty.
        cause: ``died``, ``hung``, ``node`` (its machine is gone), ``memory`` (of the machine),
            ``device_memory``, ``peers`` (an exchange between ranks failed) or ``ray`` (Ray itself is gone).
    """

    def __init__(self, message: str, *, worker: str = "", role: str = "", cause: str = "died") -> None:
        super().__init__(message)
        self.worker = worker
        self.role = role
        self.cause = cause


class StorageError(RLError):
    """A file could not be written: the disk is full, over quota or read-only. Exit code 1.

    A backend whose ``save`` or ``finish_saving`` raises it can continue training; the run loop then tries to save
    again later.
    """


class Interrupted(RLError):
    """The user asked to stop and the state was saved. Exit code 130."""

    exit_code = 130


class Preempted(Interrupted):
    """SIGTERM or ``run.save_before_timeout`` ended the run and the state was saved. Exit code 143, as after SIGTERM."""

    exit_code = 143
