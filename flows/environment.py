"""What every voxbook process tells its libraries before they are imported, and the guard against shadowed packages."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from archive.errors import ConfigError

PACKAGES = ("archive", "model", "tasks", "flows")


def prepare() -> None:
    """Set up this process: no telemetry, JSON results, our log lines to Prefect, no user file in place of ours."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "voxbook")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("PREFECT_RESULTS_DEFAULT_SERIALIZER", "json")
    for name in ("NO_PROXY", "no_proxy"):  # a site's proxy has no business with servers on this machine
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join([*hosts, *(host for host in ("127.0.0.1", "localhost") if host not in hosts)])
    os.environ["PYTHONSAFEPATH"] = "1"  # for the processes that are started from here
    logging.getLogger("voxbook").setLevel(logging.INFO)
    refuse_shadows()


def refuse_shadows() -> None:
    """Raise ConfigError SHADOWED where a user's own model.py (say) would be imported in place of ours, naming it."""
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        for folder in (Path(entry or ".") for entry in sys.path):
            files = (folder / f"{name}.py", folder / name / "__init__.py")
            found = next((path for path in files if path.exists()), None)
            if found is None:
                continue
            if not found.resolve().is_relative_to(home):
                raise ConfigError("SHADOWED", f"{found} hides voxbook's package {name!r}")
            break
