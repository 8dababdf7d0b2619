"""The commands, with typer and rich."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shmem_providers import __version__, available_providers
from shmem_providers._doctor import ProviderReport, Report, examine_machine
from shmem_providers._machine import Segment, inspect_segment, list_segments, reap_segments

console = Console(highlight=False, soft_wrap=True)
app = typer.Typer(
    help="Shared memory on this machine.",
    epilog="For the C library: --cflags, --libs, --pkgconfigdir, --cmakedir.",
    no_args_is_help=True,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _bytes(count: int) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count //= 1024
    return f"{count:,} TiB"


def _count(number: int) -> str:
    if number < 10**6:
        return f"{number:,}"
    return f"{number // 10**6} M" if number < 2**40 else "-"


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
        _count(report["segments"]),
    ]


def _table(left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    """Make a table with its first columns flush left and the others flush right."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _show_report(report: Report) -> None:
    table = _table(("provider", "memory", "id"), ("create µs", "attach µs", "largest", "count"))
    for provider in report["providers"]:
        table.add_row(*_row(provider))
    console.print(table)
    console.print(f"shmem_providers {report['version']} on {report['platform']}: std is {report['std'] or 'nothing'}")
    for provider in report["providers"]:
        if "problem" in provider:
            console.print(f"[yellow]{provider['name']}[/yellow]: {escape(provider['problem'])}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Make a segment with every provider, have a second process change it, and see the change here.

    Times are medians of create+close and attach+close at 4 KiB. Exits with 1 when a provider of
    this platform does not work.
    """
    report = examine_machine(__version__)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _show_report(report)
    if not all(provider["works"] for provider in report["providers"]):
        raise typer.Exit(1)


def _name_of(user: int) -> str:
    """Give the login name of a user, or the number of one that has none."""
    try:
        import pwd

        return pwd.getpwuid(user).pw_name
    except (ImportError, KeyError):
        return str(user)


def _show_segments(segments: list[Segment], nothing: str) -> None:
    table = _table(("provider", "id", "user"), ("size", "owner", "state"))
    for segment in segments:
        state = "alive" if segment["alive"] else "[yellow]left over[/yellow]"
        owner = str(segment["owner_pid"] or "-")
        user = escape(_name_of(segment["user"]))
        table.add_row(segment["provider"], escape(segment["id"]), user, f"{segment['size']:,}", owner, state)
    console.print(table if segments else nothing)


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List the segments that programs on this machine made with this library."""
    listing = list_segments()
    if as_json:
        print(json.dumps(listing, indent=2))
        return
    _show_segments(listing["segments"], "No segment.")
    for reason in listing["unseen"]:
        console.print(f"[dim]not shown: {escape(reason)}[/dim]")


@app.command()
def reap(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, only list it.")] = False,
    as_json: Json = False,
) -> None:
    """Remove the segments whose owners were killed.

    Only posix segments can be left over, under names that the library gave them: on Windows nothing can. What any
    process holds is never removed.
    """
    try:
        segments = reap_segments(dry_run=dry_run)
    except OSError as problem:
        console.print(f"[red]{escape(str(problem))}[/red]")
        raise typer.Exit(1) from problem
    if as_json:
        print(json.dumps(segments, indent=2))
    elif "posix" in available_providers():
        _show_segments(segments, "Nothing was left over.")
    else:
        console.print("Nothing can be left over here: each segment goes with its last user.")


@app.command()
def inspect(
    id: Annotated[str, typer.Argument(help="The segment's id.")],
    bytes_shown: Annotated[int, typer.Option("--bytes", min=0, help="How many of its bytes to show.")] = 64,
    as_json: Json = False,
) -> None:
    """Show a segment's size, whose it is, its first bytes, and the processes that have it mapped."""
    try:
        inspection = inspect_segment(id, bytes_shown=bytes_shown)
    except (OSError, ValueError) as problem:
        console.print(f"[red]{escape(str(problem))}[/red]")
        raise typer.Exit(1) from problem
    if as_json:
        print(json.dumps(inspection, indent=2))
        return
    console.print(f"{inspection['provider']} segment {escape(inspection['id'])}: {inspection['size']:,} bytes")
    if inspection["user"] is not None:
        console.print(f"user: {escape(_name_of(inspection['user']))}")
    if inspection["mapped_by"] is not None:
        console.print(f"mapped by: {', '.join(map(str, inspection['mapped_by'])) or 'nobody that can be seen'}")
    data = bytes.fromhex(inspection["first_bytes"])
    for start in range(0, len(data), 16):
        line = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)
        console.print(f"{start:08x}  {line.hex(' '):47}  {escape(text)}")
