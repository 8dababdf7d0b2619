"""The commands, with typer and rich."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from shmem_providers import __version__, _serve
from shmem_providers._binding import std_is_served
from shmem_providers._doctor import ProviderReport, Report, examine_machine
from shmem_providers._machine import (
    HeldError,
    Segment,
    command_of,
    inspect_segment,
    list_segments,
    reap_segments,
    reason_of,
    remove_name,
    shown_holder,
)

console = Console(highlight=False, soft_wrap=True)
notes = Console(highlight=False, soft_wrap=True, stderr=True)
app = typer.Typer(
    help="Shared memory on this machine.",
    epilog="For the C library: --cflags, --libs, --pkgconfigdir, --cmakedir.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


UNKNOWN = 2**62  # what the library gives for a limit of 64 bits that it does not know


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"shmem_providers {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Shared memory on this machine."""


def _bytes(count: int) -> str:
    if count >= UNKNOWN:
        return "-"
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
        return [report["name"], "no", "", "", "", "", ""]
    return [
        report["name"],
        "private" if report["name"] == "nop" else "shared",
        report["id"] or "-",
        f"{report['create_us']:.1f}",
        f"{report['attach_us']:.1f}",
        _bytes(report["largest_bytes"]),
        _count(report["segments"]),
    ]


def _table(left: tuple[str, ...], right: tuple[str, ...], rows: Iterable[list[str]]) -> str:
    """Lay out a table with its first columns flush left and the others flush right: quickly, whatever its length."""
    lines = [[*left, *right], *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pattern = " ".join(f"{{:{'<' if at < len(left) else '>'}{width}}} " for at, width in enumerate(widths))
    rule = "─" if sys.stdout.encoding.lower().startswith("utf") else "-"
    heading, *others = (" " + pattern.format(*line) for line in lines)
    return "\n".join([" " * len(heading), heading, f" {rule * (len(heading) - 2)} ", *others, " " * len(heading)])


def _show_report(report: Report) -> None:
    columns = ("provider", "memory", "id"), ("create µs", "attach µs", "largest", "count")
    print(_table(*columns, map(_row, report["providers"])))
    console.print(f"shmem_providers {report['version']} on {report['platform']}: std is {report['std'] or 'nothing'}")
    if not report["no_service"]:
        console.print("a service answers: see served")
    elif std_is_served or "SHMEM_SERVICE" in os.environ:
        console.print(f"no service: {escape(report['no_service'])}", soft_wrap=False)
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


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context) -> None:
    """Run a service, which hands out segments, in the foreground (serve --help)."""
    raise typer.Exit(_serve.main(context.args))


def _name_of(user: int) -> str:
    """Give the login name of a user, or the number of one that has none."""
    try:
        import pwd

        return pwd.getpwuid(user).pw_name
    except (ImportError, KeyError):
        return str(user)


def _age(seconds: int) -> str:
    if seconds < 0:
        return "-"
    for unit, length in (("s", 60), ("min", 60), ("h", 48)):
        if seconds < length:
            return f"{seconds} {unit}"
        seconds //= 60 if unit != "h" else 24
    return f"{seconds} d"


def _state(segment: Segment) -> str:
    if not segment["ours"]:
        return "not known whose"
    states = ["alive"] * segment["alive"] + ["kept"] * segment["kept"]
    return ", ".join(states) or "left over"


def _show_segments(segments: list[Segment]) -> None:
    names = {user: _name_of(user) for user in {segment["user"] for segment in segments}}
    rows = [
        [
            segment["provider"],
            segment["id"],
            names[segment["user"]],
            shown_holder(segment["holder_pid"], segment["command"]),
            f"{segment['size']:,}",
            _age(segment["age"]),
            _state(segment),
        ]
        for segment in segments
    ]
    print(_table(("provider", "id", "user", "held by"), ("size", "age", "state"), rows))


def _note(text: str, style: str = "dim") -> None:
    notes.print(escape(text), style=style)


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List the segments that programs on this machine made with this library."""
    listing = list_segments()
    if as_json:
        print(json.dumps(listing, indent=2))
        return
    if listing["segments"]:
        _show_segments(listing["segments"])
    else:
        print("No segment.")
    for reason in listing["unseen"]:
        _note(f"note: {reason}")


def _refuse(problem: Exception) -> typer.Exit:
    _note(reason_of(problem) if isinstance(problem, (OSError, ValueError)) else str(problem), "red")
    return typer.Exit(1)


def _reap_name(name: str, *, force: bool, dry_run: bool, as_json: bool) -> None:
    try:
        holders = remove_name(name, force=force, dry_run=dry_run)
    except (OSError, ValueError, HeldError) as problem:
        if name.isdecimal():
            _note(f"{name}: only posix names are removed by name; a System V segment by ipcrm -m {name}", "red")
            raise typer.Exit(1) from problem
        raise _refuse(problem) from problem
    if as_json:
        print(json.dumps({"name": name, "held": holders}))
        return
    print(f"{'Would remove' if dry_run else 'Removed'} {name}, which {holders or 'nobody holds'}.")


@app.command()
def reap(
    name: Annotated[str | None, typer.Argument(help="Remove this posix name, whoever made it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Remove NAME also while it is used.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, only say what would be.")] = False,
    as_json: Json = False,
) -> None:
    """Remove the segments whose owners were killed, or one posix name.

    Only posix names that the library gave can be left over, and System V segments for a minute: on Windows nothing
    can. What any process holds is never removed, but for NAME with --force.
    """
    if name is not None:
        _reap_name(name, force=force, dry_run=dry_run, as_json=as_json)
        return
    found = reap_segments(dry_run=dry_run)
    segments, done = found["segments"], "Would remove" if dry_run else "Removed"
    if as_json:
        print(json.dumps(segments, indent=2))
    elif segments:
        _show_segments(segments)
        size = sum(segment["size"] for segment in segments)
        print(f"{done} {len(segments):,} segment{'s' * (len(segments) != 1)}, {size:,} bytes.")
    else:
        print("Nothing was left over.")
    for reason in found["unseen"]:
        _note(f"not looked at: {reason}")


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
        raise _refuse(problem) from problem
    if as_json:
        print(json.dumps(inspection, indent=2))
        return
    console.print(f"{inspection['provider']} segment {escape(inspection['id'])}: {inspection['size']:,} bytes")
    if inspection["user"] is not None:
        console.print(f"user: {escape(_name_of(inspection['user']))}")
    if inspection["mapped_by"] is not None:
        users = [shown_holder(pid, command_of(pid)) for pid in inspection["mapped_by"]]
        console.print(f"mapped by: {', '.join(users) or 'nobody that can be seen'}")
    data = bytes.fromhex(inspection["first_bytes"])
    for start in range(0, len(data), 16):
        line = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in line)
        console.print(f"{start:08x}  {line.hex(' '):47}  {escape(text)}")
