"""``rl cluster``: a Ray on this machine that later runs join, so that its start is paid once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rl_local_cluster.local import LocalCluster


def start_command(
    cpus: Annotated[int | None, typer.Option("--cpus", min=1, help="CPU cores to use; default: all.")] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=0, help="GPUs to use; default: all.")] = None,
) -> None:
    """Start a local cluster, for this user and on this machine only."""
    from rl_core.cluster.resources import usable_cpus
    from rl_core.machine import gpu_count
    from rl_ray.head import HeadOptions

    from rl_local_cluster import local

    gpus = (gpu_count() or 0) if gpus is None else gpus
    store = None if gpus else local.OBJECT_STORE_BYTES_CPU
    _show(local.start(HeadOptions(cpus or usable_cpus(), gpus=gpus, object_store_bytes=store)))
    typer.echo(f"use it:     rl run CONFIG run.address={local.NAME}    (or: export RAY_ADDRESS={local.NAME})")
    typer.echo("end it:     rl cluster stop")


def status_command() -> None:
    """Show the local cluster: its nodes, resources, processes and folder."""
    from rl_local_cluster import local

    cluster = local.find()
    if cluster is None:
        typer.echo("no local cluster runs\n    start one with: rl cluster start")
        raise typer.Exit(1)
    _show(cluster)
    nodes, all_of_them, free = local.resources(cluster)
    kinds = [kind for kind in ("CPU", "GPU") if kind in all_of_them]
    shown = ", ".join(f"{free.get(kind, 0):g} of {all_of_them[kind]:g} {kind} free" for kind in kinds)
    typer.echo(f"nodes       {nodes}\nresources   {shown}")
    for pid, name in sorted(cluster.processes):
        typer.echo(f"process     {pid:>8}  {name}")


def stop_command() -> None:
    """End the local cluster with all that runs on it."""
    from rl_local_cluster import local

    cluster = local.stop()
    typer.echo("no local cluster runs" if cluster is None else f"stopped the local cluster at {cluster.address}")


def _show(cluster: LocalCluster) -> None:
    typer.echo(f"address     {cluster.address}\nfolder      {cluster.folder}\npid         {cluster.pid}")
