"""The console script ``rl``: builds the application, runs one command, turns its outcome into an exit code.

Exit codes: 0 done, 1 the run failed, 2 the config or the command line is wrong, 3 the environment
is, 130 interrupted, 143 stopped by SIGTERM or before a time limit (the state is saved).
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.main
from rl_secrets.redaction import forget_secrets, hide_secrets

from rl_core.cli import (
    check,
    evaluate,
    export,
    plugins,
    resume,
    run,
    streams,
)
from rl_core.cli.framework import Command, Group, warn
from rl_core.errors import EnvironmentProblem, Interrupted, RLError

if TYPE_CHECKING:
    from rl_core.discovery.registry import Registry

_COMMANDS = {
    "run": run.run_command,
    "check": check.check_command,
    "resume": resume.resume_command,
    "eval": evaluate.evaluate_command,
    "export": export.export_command,
    "plugins": plugins.plugins_command,
}
_LIST_BROKEN_PLUGINS_THEMSELVES = ("plugins", "plugin", "doctor")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: ``sys.argv``) and return its exit code."""
    streams.prepare()
    forget_secrets()
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = os.environ.get("RL_DEBUG", "") not in ("", "0") or "--debug" in given
    # Accepted anywhere on the line: it is added to a command that has just failed.
    given = [argument for argument in given if argument != "--debug"]
    try:
        _require_working_directory()
        from rl_core.discovery.registry import load_registry

        registry = load_registry()
        if not (given and given[0] in _LIST_BROKEN_PLUGINS_THEMSELVES):
            _warn_about(registry)
        command = build_command(registry)
        if given and given[0] not in command.commands:
            _require_its_package(given[0], registry)
        command.main(given, prog_name="rl", obj=registry)
    except SystemExit as end:
        return _exit_code(end)
    except KeyboardInterrupt:
        return 130
    except RLError as error:
        if debug:
            typer.echo(hide_secrets(traceback.format_exc()), err=True, nl=False)
        head = "" if isinstance(error, Interrupted) else "error: "
        typer.echo(hide_secrets(f"{head}{error}"), err=True)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the one place where an unforeseen failure is reported
        _report_unforeseen(error, debug=debug)
        return 1
    return 0


def _require_working_directory() -> None:
    try:
        os.getcwd()
    except OSError:
        raise EnvironmentProblem("the working directory was removed\n    cd to a folder that exists") from None


def _require_its_package(command: str, registry: Registry) -> None:
    """Say what to install for a command that a published package adds."""
    from rl_core.discovery.lookup import find_component, published

    if command in published()["command"]:
        find_component("command", command, registered=(), plugins=registry.plugins)


def build_command(registry: Registry) -> Any:
    """The application with the core's commands and those of plugins; a plugin's failure becomes a warning."""
    app = _application()
    own = {id(one) for one in (*app.registered_commands, *app.registered_groups)}
    outcomes = registry.call("register_commands", app=app)
    for outcome in outcomes:
        if outcome.error is not None:
            error = outcome.error
            warn(f"{outcome.package}: register_commands failed: {type(error).__name__}: {error}")
    _drop_taken_names(app, own)
    try:
        return typer.main.get_command(app)
    except Exception as error:  # noqa: BLE001 - the plugin boundary: typer looks at their signatures only here
        packages = ", ".join(outcome.package for outcome in outcomes)
        warn(f"the commands of {packages} are left out: {type(error).__name__}: {error}")
        return typer.main.get_command(_application())


def _application() -> typer.Typer:
    app = typer.Typer(cls=Group, add_completion=False, no_args_is_help=True, rich_markup_mode=None)
    app.callback()(_root)
    for name, function in _COMMANDS.items():
        app.command(name, cls=Command)(function)  # type: ignore[type-var]
    return app


def _show_version(shown: bool) -> None:
    if shown:
        import rl_core

        typer.echo(f"rl-core {rl_core.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the Python traceback of a failure (also: RL_DEBUG=1).")
    ] = False,
) -> None:
    """Post-training of language models, assembled from plugins."""


def _drop_taken_names(app: typer.Typer, own: set[int]) -> None:
    """A plugin must not replace a command of the core; ``own`` are the ids of the core's."""
    for one in list(app.registered_commands):
        name = one.name or getattr(one.callback, "__name__", "").replace("_", "-")
        if name in _COMMANDS and id(one) not in own:
            app.registered_commands.remove(one)
            warn(f"command {name!r} of {getattr(one.callback, '__module__', 'a plugin')} is left out: rl has its own")
    for group in list(app.registered_groups):
        if group.name in _COMMANDS and id(group) not in own:
            app.registered_groups.remove(group)
            warn(f"command group {group.name!r} of a plugin is left out: rl has a command of that name")


def _warn_about(registry: Registry) -> None:
    for plugin in registry.plugins:
        if plugin.status in ("broken", "incompatible"):
            warn(f"plugin {plugin.package} {plugin.version} is {plugin.status}: {plugin.reason}")


def _exit_code(end: SystemExit) -> int:
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    typer.echo(str(end.code), err=True)
    return 1


def _report_unforeseen(error: Exception, *, debug: bool) -> None:
    from rl_core.discovery.status import describe

    text = hide_secrets(traceback.format_exc())
    if debug:
        typer.echo(text, err=True, nl=False)
        return
    try:
        with tempfile.NamedTemporaryFile("w", prefix="rl-error-", suffix=".log", delete=False, encoding="utf-8") as log:
            log.write(text)
    except OSError:  # no temporary folder can be written
        typer.echo(text, err=True, nl=False)
        return
    said = hide_secrets(f"error: unexpected {describe(error)}")
    typer.echo(f"{said}\n    log: {log.name}\n    run again with --debug", err=True)
