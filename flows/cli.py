"""The command `voxbook`: its verbs, and what becomes of errors. Everything heavy is imported by the verb that needs it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from archive.errors import VoxbookError

app = typer.Typer(
    name="voxbook",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Archives of medical images as checked stores of VQ-VAE codebook indices. Research use, not a medical device.",
    epilog="Exit codes: 0 ok, 1 unexpected, 2 usage or configuration, 3 nothing found, 4 quarantined items, "
    "5 quality gate, 6 mismatch or damage.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"voxbook {version('voxbook')}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Archives of medical images as checked stores of VQ-VAE codebook indices. Research use, not a medical device."""


def main() -> None:
    """Run the command line; every foreseen error ends in one line, a hint and a documented exit code."""
    from flows import console, verbs_item, verbs_service, verbs_stage
    from flows.environment import prepare

    as_json = "--json" in sys.argv
    try:
        prepare()
        for verbs in (verbs_stage, verbs_item, verbs_service):
            verbs.register(app)
        for verb in app.registered_commands:  # the list of verbs would cut their sentences short
            verb.short_help = " ".join((verb.callback.__doc__ or "").split("\n\n")[0].split())
        app()
    except VoxbookError as error:
        console.show_error(error, as_json)
        sys.exit(console.exit_code_of(error))
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:  # the last place that can keep a path or a name out of a traceback
        import os

        from archive.errors import REASONS, describe

        if os.environ.get("VOXBOOK_DEBUG"):
            raise
        console.notice(
            f"error UNEXPECTED: {describe(error)}\n  {REASONS['UNEXPECTED'].hint}; VOXBOOK_DEBUG=1 shows all"
        )
        if as_json:
            console.emit({"error": "UNEXPECTED", "message": describe(error)})
        sys.exit(console.UNEXPECTED)


if __name__ == "__main__":
    main()
