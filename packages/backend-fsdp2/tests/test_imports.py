"""What a worker without an adapter does not import."""

import ast
from pathlib import Path

import rl_backend_fsdp2


def imports_of(path):
    """Modules that are imported with ``path``: not those inside functions, nor for annotations only."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_peft_is_imported_where_there_is_an_adapter_only():
    folder = Path(rl_backend_fsdp2.__file__).parent
    imports = {path.stem: set(imports_of(path)) for path in folder.glob("*.py")}
    with_peft = {name for name, found in imports.items() if any(m.split(".")[0] == "peft" for m in found)}
    assert with_peft == {"adalora"}
    assert not any("rl_backend_fsdp2.adalora" in found for found in imports.values())
