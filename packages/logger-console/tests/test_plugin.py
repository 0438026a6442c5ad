from __future__ import annotations

import importlib

from rl_logger_console import plugin


def test_its_references_lead_to_the_logger_and_its_config():
    (component,) = plugin.register_loggers()
    assert (component.kind, component.name, component.imports) == ("logger", "console", ())
    for reference in (component.factory, component.config):
        module, _, attribute = reference.partition(":")
        assert callable(getattr(importlib.import_module(module), attribute))
