"""A plugin whose parts do nothing, and a config of them, for tests of commands that read configs."""

PLUGIN = """
from rl_core.component import Component
from rl_core.hookspecs import hookimpl

def component(kind, config):
    return [Component(kind, "practice", "rl_x_parts.parts:Part", f"rl_x_parts.config:{config}", "For practice")]

@hookimpl
def register_algorithms():
    return component("algorithm", "Algorithm")

@hookimpl
def register_backends():
    return component("backend", "Backend")

@hookimpl
def register_tokenizers():
    return component("tokenizer", "Plain")

@hookimpl
def register_data_sources():
    return component("data_source", "Plain")
"""

CONFIGS = """
from rl_core.config.paths import FunctionRef
from rl_core.config.sections import AlgorithmConfig, BackendConfig, ComponentConfig

class Algorithm(AlgorithmConfig):
    pass

class Backend(BackendConfig):
    pass

class Plain(ComponentConfig):
    functions: tuple[FunctionRef, ...] = ()
"""

GOOD = """\
model: {path: some/model}
algorithm: {name: practice}
backend: {name: practice}
tokenizer: {name: practice}
data: {name: practice}
run: {steps: 3}
"""
