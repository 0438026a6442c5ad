"""``rl plugin new``: a package to start a plugin from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rl_core.discovery.registry import Registry

    from rl_plugin_kit.scaffold.names import PackageNames


def new_command(
    context: typer.Context,
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="algorithm, backend, generator, data, reward, environment, evaluator or logger.",
        ),
    ],
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="What configs will call it, in lower-case letters, digits and hyphens."),
    ],
    directory: Annotated[
        str | None,
        typer.Option("--directory", metavar="DIR", help="Folder to make; default: rl-KIND-NAME in this folder."),
    ] = None,
) -> None:
    """Write a plugin package to start from.

    It is complete and works as it is: code, tests, README and CI. A folder that exists is never touched.

    For example, rl plugin new reward brevity writes the package rl-reward-brevity, which offers the reward 'brevity'.

    What the code of each kind does, until you replace it:

    \b
    algorithm    REINFORCE with the group's mean reward as baseline
    backend      plain PyTorch training in one process, on CPU or one GPU
    generator    a sampling loop over a Hugging Face model
    data         prompts and answers from the lines of a text file
    reward       full reward at a wanted length, less with the distance from it
    environment  asks again until the answer is right
    evaluator    how many greedy completions contain the answer
    logger       metrics as lines of a CSV file
    """
    import shlex
    from pathlib import Path

    from rl_core.discovery.metadata import core_version

    from rl_plugin_kit.scaffold.names import find_kind, package_names
    from rl_plugin_kit.scaffold.write import write_package

    names = package_names(find_kind(kind), name)
    refuse_installed(names, context.obj)
    target = Path(directory or names.package)
    files = write_package(names, target, core=core_version())
    typer.echo(f"wrote {names.package} to {target} ({len(files)} files)")
    for path in files:
        typer.echo(f"    {path}")
    typer.echo(
        f"next:\n    cd {shlex.quote(str(target))}\n    pip install -e '.[test]'\n    pytest\n"
        f"    rl plugin check {names.package}\n"
        "no licence is chosen: add a file LICENSE, and name the licence in pyproject.toml, before you publish"
    )


def refuse_installed(names: PackageNames, registry: Registry) -> None:
    """Two packages of one name cannot be installed together.

    Raises:
        ConfigError: a plugin of this name is installed.
    """
    from rl_core.errors import ConfigError

    if any(plugin.package == names.package for plugin in registry.plugins):
        raise ConfigError(
            f"{names.package} is installed already; nothing was written\n"
            f"    choose another name, or: pip uninstall {names.package}"
        )
