"""The old name of :mod:`rl_plugin_kit.conformance`."""

from rl_core.testing import warn_moved

warn_moved(__name__, "rl_plugin_kit.conformance")

from rl_plugin_kit.conformance import *  # noqa: E402, F403
