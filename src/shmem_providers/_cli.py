"""The commands, with typer and rich."""

from __future__ import annotations

import json

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shmem_providers import __version__
from shmem_providers._doctor import ProviderReport, Report, examine_machine

app = typer.Typer(help="Shared memory on this machine.", no_args_is_help=True, add_completion=False)


@app.callback()
def _commands() -> None:
    """Keep `doctor` a command of its own while it is the only one."""


def _bytes(count: int) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count //= 1024
    return f"{count:,} TiB"


def _row(report: ProviderReport) -> list[str]:
    if not report["works"]:
        return [report["name"], "[red]no[/red]", "", "", "", "", ""]
    shared = "private" if report["name"] == "nop" else "[green]shared[/green]"
    return [
        report["name"],
        shared,
        escape(report["id"]) or "-",
        f"{report['create_us']:.1f}",
        f"{report['attach_us']:.1f}",
        _bytes(report["largest_bytes"]),
        f"{report['segments']:,}" if report["segments"] < 2**40 else "-",
    ]


def _show(report: Report) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("provider", "memory", "id"):
        table.add_column(heading, no_wrap=True)
    for heading in ("create µs", "attach µs", "largest", "count"):
        table.add_column(heading, justify="right", no_wrap=True)
    for provider in report["providers"]:
        table.add_row(*_row(provider))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"shmem_providers {report['version']} on {report['platform']}: std is {report['std'] or 'nothing'}")
    for provider in report["providers"]:
        if "problem" in provider:
            console.print(f"[yellow]{provider['name']}[/yellow]: {escape(provider['problem'])}")


@app.command()
def doctor(as_json: bool = typer.Option(False, "--json", help="Print the report as JSON.")) -> None:
    """Make a segment with every provider, have a second process change it, and see the change here.

    Times are medians of create+close and attach+close at 4 KiB. Exits with 1 when a provider of
    this platform does not work.
    """
    report = examine_machine(__version__)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _show(report)
    if not all(provider["works"] for provider in report["providers"]):
        raise typer.Exit(1)
