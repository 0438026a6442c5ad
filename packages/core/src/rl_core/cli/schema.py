"""``rl schema``: the JSON schema of a config file, for editors."""

from __future__ import annotations

import typer


def schema_command(context: typer.Context) -> None:
    """Print the JSON schema of a config."""
    import json

    from rl_core.config.schema import json_schema

    typer.echo(json.dumps(json_schema(context.obj), indent=2))
