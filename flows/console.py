"""What people and programs see of a command: bars and tables on stderr and stdout, one JSON object, an exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from archive.errors import ConfigError, InputError, MismatchError, QualityError, StoreError, VoxbookError
from tasks.progress import Step, listening, reading

if TYPE_CHECKING:  # what stages stand on takes half a second to import
    from tasks.stage import Outcome

OK, UNEXPECTED, USAGE, NOTHING, QUARANTINED, QUALITY, DAMAGE = range(7)
ABSENT = ("NOT_FOUND", "NOTHING_FOUND", "NO_MODEL")


def exit_code(outcome: Outcome) -> int:
    """0 ok, 3 nothing found, 4 quarantined items, 5 quality gate, 6 mismatch or damage; the highest of 6 > 5 > 4 wins."""
    if outcome.damaged:
        return DAMAGE
    if outcome.below_gate:
        return QUALITY
    if outcome.quarantined:
        return QUARANTINED
    return OK if outcome.found else NOTHING


def exit_code_of(error: VoxbookError) -> int:
    """The exit code of an error that ended a command."""
    if isinstance(error, ConfigError):
        return USAGE
    if isinstance(error, QualityError):
        return QUALITY
    if isinstance(error, InputError):
        return QUARANTINED
    if error.code in ABSENT:
        return NOTHING
    if isinstance(error, MismatchError | StoreError):
        return DAMAGE
    return UNEXPECTED


ABOUT = ("series", "model", "tables", "group")  # of an error's context: what it is about


def notice(text: str) -> None:
    """A line for people; stdout stays free for results."""
    sys.stderr.write(f"{text}\n")


def emit(data: dict[str, Any]) -> None:
    """The one object of --json."""
    sys.stdout.write(json.dumps(data, default=str) + "\n")


def show_error(error: VoxbookError, as_json: bool) -> None:
    """What was found, of what, and what to do, without a traceback."""
    about = {key: error.context[key] for key in ABOUT if error.context.get(key)}
    told = ", ".join(f"{key} {str(value)[:12]}" for key, value in about.items())
    notice(f"error {error.code}: {error.message}{f' ({told})' if told else ''}\n  {error.hint}")
    if as_json:
        emit({"error": error.code, "message": error.message, "hint": error.hint, **about})


def show_outcome(outcome: Outcome, as_json: bool) -> int:
    """Print what a stage did; returns its exit code."""
    if as_json:
        emit(outcome.as_dict())
    else:
        sys.stdout.write(f"{outcome.sentence}\n")
        if "report" in outcome.counts:
            sys.stdout.write(f"  {outcome.counts['report']}\n")
        if outcome.reasons:
            reasons(outcome.reasons)
            if outcome.verb in ("ingest", "nightly"):
                sys.stdout.write("Which files: voxbook inspect -w WS REASON --reveal\n")
    return exit_code(outcome)


def reasons(counts: dict[str, int]) -> None:
    """A table of reason codes with what each means and what to do."""
    from archive.errors import REASONS

    rows = [(code, count, REASONS[code].text, REASONS[code].hint) for code, count in sorted(counts.items())]
    table(("reason", "count", "what", "what to do"), rows)


def say(sentences: Sequence[str]) -> None:
    """Sentences on stdout, a line each."""
    sys.stdout.writelines(f"{sentence}\n" for sentence in sentences)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """A plain table on stdout, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        numeric = bool(rows) and all(isinstance(row[columns.index(column)], int | float) for row in rows)
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(
            *("" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row)
        )
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(drawn)


def _line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def lines(as_json: bool) -> Iterator[None]:
    """What stages run inside say, on stdout; nothing there where it is kept for one JSON object."""
    if as_json:
        yield
        return
    with reading(_line):
        yield


@contextmanager
def progress_bars(quiet: bool = False) -> Iterator[Callable[[Step], None] | None]:
    """Bars on stderr for every stage run inside; none when stderr is not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
        console=Console(stderr=True),
        transient=True,
    ) as bars:
        known: dict[str, Any] = {}

        def show(step: Step) -> None:
            if step.stage not in known:
                known[step.stage] = bars.add_task(step.stage, total=step.total, unit=step.unit, words="")
            bars.update(known[step.stage], completed=int(step.done), total=int(step.total), words=step.text)

        with listening(show):
            yield show
