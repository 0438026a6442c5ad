"""Tests for a backend on the engine: derive a class from :class:`rl_torch.engine.testing.suite.EngineSuite`."""

import pytest

pytest.register_assert_rewrite("rl_torch.engine.testing.suite", "rl_torch.engine.testing.jobs")
