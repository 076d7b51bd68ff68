"""Writes docs/cli.md, configuration.md, errors.md and the README's file map from the code; a test holds them equal."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

from pydantic import BaseModel

from archive import errors
from archive.settings import GroupSettings, Section, Settings

HOME = Path(__file__).resolve().parent.parent / "docs"


def cli() -> str:
    """docs/cli.md: every verb with its help, options and example."""
    from typer.main import get_command

    from flows import verbs_item, verbs_service, verbs_stage
    from flows.cli import app

    if not app.registered_commands:
        for verbs in (verbs_stage, verbs_item, verbs_service):
            verbs.register(app)
    lines = ["# The command line", "", "Made from the code by `make docs`.", ""]
    lines += [
        "`--set KEY=VALUE` overrides any setting on every verb that runs a stage. `--json` prints exactly one",
        "",
    ]
    lines[-2] += " object on stdout; progress goes to stderr, and only to a terminal."
    lines += ["| exit code | meaning |", "|---|---|"]
    meanings = ("ok", "unexpected", "usage or configuration", "nothing found", "done, with quarantined items")
    lines += [f"| {code} | {text} |" for code, text in enumerate((*meanings, "quality gate", "mismatch or damage"))]
    lines += ["", "The highest of 6 > 5 > 4 wins.", ""]
    for name, command in sorted(get_command(app).commands.items()):  # type: ignore[attr-defined]
        lines += [f"## voxbook {name}", "", inspect.cleandoc(command.help or ""), ""]
        lines += ["| option | meaning |", "|---|---|"]
        for parameter in command.params:
            spelled = (
                ", ".join(parameter.opts)
                if parameter.param_type_name == "option"
                else (parameter.metavar or parameter.name or "")
            )
            lines.append(f"| `{spelled}` | {getattr(parameter, 'help', '') or ''} |")
        lines.append("")
    return "\n".join(lines)


def configuration() -> str:
    """docs/configuration.md: every setting, its default and meaning."""
    lines = [
        "# Settings",
        "",
        "`voxbook.toml` in the workspace; `voxbook init` writes one with everything in it. `--set KEY=VALUE` overrides any",
        "of them for one run. An unknown key ends the command with exit code 2 and names the nearest one.",
        "Secrets come from the environment: `VOXBOOK_KEY` is the pseudonym key.",
        "",
        "| key | default | meaning |",
        "|---|---|---|",
        *_rows(Settings, ""),
        "",
    ]
    return "\n".join(lines)


def _rows(model: type[BaseModel], prefix: str) -> list[str]:
    rows = []
    for name, field in model.model_fields.items():
        if name == "groups":
            rows += _rows(GroupSettings, "groups.NAME.")
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            rows += _rows(field.annotation, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            shown = "none" if default is None else f"`{default}`"
            rows.append(f"| `{prefix}{name}` | {shown} | {field.description} |")
    return rows


def reasons() -> str:
    """docs/errors.md: every reason code."""
    lines = [
        "# Errors and reason codes",
        "",
        "Codes are stable: they are stored in catalogs and reports, and only ever added to.",
        "",
        "| class | also a | what a caller does |",
        "|---|---|---|",
    ]
    kinds = ("InputError", "TransientError", "StoreError", "MismatchError", "QualityError", "ConfigError")
    for name in kinds:
        kind = getattr(errors, name)
        lines.append(f"| `{name}` | `{kind.__bases__[1].__name__}` | {inspect.getdoc(kind)} |")
    lines += ["", "| code | what was found | what to do |", "|---|---|---|"]
    lines += [f"| `{code}` | {reason.text} | {reason.hint} |" for code, reason in errors.REASONS.items()]
    return "\n".join([*lines, ""])


def file_map() -> str:
    """The README's map: every file of every room, with the first sentence of its docstring."""
    lines = []
    for room, about in ROOMS.items():
        lines += [f"**{room}/** {about}", ""]
        for path in sorted((HOME.parent / room).glob("*")):
            if path.suffix in (".py", ".j2", ".yaml") and path.name != "__init__.py":
                lines.append(f"- `{room}/{path.name}`: {_first_sentence(path)}")
        lines.append("")
    return "\n".join(lines)


def readme() -> str:
    """README.md with its map made anew."""
    before, _, rest = (HOME.parent / "README.md").read_text(encoding="utf-8").partition(MAP_BEGINS)
    _, _, after = rest.partition(MAP_ENDS)
    return f"{before}{MAP_BEGINS}\n\n{file_map()}\n{MAP_ENDS}{after}"


def _first_sentence(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").split("\n")[0].rstrip(".")
    return {"report.html.j2": "the report's page", "view.html.j2": "the viewer's page"}.get(
        path.name, "the deployments and the nightly schedule"
    )


ROOMS = {
    "archive": "bytes: DICOM, NIfTI, pictures, Zarr stores, catalog; no torch, Dask or Prefect",
    "model": "tensors: VQ-VAE, quantizer, training, encoding, decoding, measuring; no Prefect, no DICOM",
    "tasks": "one retryable piece each; cluster, leases, progress",
    "flows": "what runs in which order, what people see, the command line",
    "deployments": "what runs where; names flows by string, holds no logic",
    "benchmarks": "one script per claim",
    "examples": "to start from",
}
MAP_BEGINS, MAP_ENDS = "<!-- files: made by `make docs` -->", "<!-- end of files -->"
PAGES = {"cli.md": cli, "configuration.md": configuration, "errors.md": reasons, "../README.md": readme}

if __name__ == "__main__":
    for page, text in PAGES.items():
        (HOME / page).write_text(text(), encoding="utf-8")
