"""Where a stage runs, in Prefect or without it, and the state that it ends in."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from archive.errors import ConfigError
from flows.artifacts import publish_outcome
from flows.events import tell_outcome
from tasks.stage import Outcome, Stage, recording

logger = logging.getLogger("voxbook")


def configured_api() -> str | None:
    """The Prefect API that this process should talk to: its settings, else the server that `voxbook up` started."""
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if url:
        return str(url)
    from flows.server import running_api

    return running_api()


def workspace_name(parameters: Mapping[str, Any]) -> str:
    """The name of the folder that a run works on, which stands for it in names, tags and events; never a path."""
    text = str(parameters.get("workspace") or "")
    return Path(text).expanduser().resolve().name if text else ""


def answers(url: str) -> bool:
    """Whether a Prefect API answers there; loopback and site servers answer in well under two seconds."""
    # A site's proxy has no business with this machine.
    local = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")
    ways = [urllib.request.ProxyHandler({})] if local else []
    try:
        with urllib.request.build_opener(*ways).open(f"{url.rstrip('/')}/health", timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def run_stage(flow: Any, notice: Callable[[str], None], **parameters: Any) -> Outcome:
    """Run a flow where a Prefect API is configured and answers; else the same body directly, and say so in one line."""
    parameters = {name: value for name, value in parameters.items() if value is not None}  # the flow's default
    url = configured_api()
    if url and answers(url):
        refuse_secrets(parameters.get("settings", []))
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        from flows.server import password_of

        secret = password_of(url)
        with temporary_settings({PREFECT_API_URL: url, **({PREFECT_API_AUTH_STRING: secret} if secret else {})}):
            state = flow(**parameters, return_state=True)
            return state.result(raise_on_failure=not isinstance(_outcome(state), Outcome))
    reason = f"the Prefect API at {url} does not answer" if url else "no Prefect API is configured"
    notice(f"{reason}: running directly, nothing is recorded there")
    return flow.fn(**parameters)


def refuse_secrets(settings: list[str]) -> None:
    """Prefect keeps parameters in clear, so paths and passwords belong into voxbook.toml. Raises ConfigError BAD_USAGE."""
    for override in settings:
        if override.split("=")[0].split(".")[0].strip() in ("sources", "database", "linkage"):
            raise ConfigError("BAD_USAGE", "sources, database and linkage are not for --set in a recorded run")


def _outcome(state: Any) -> Any:
    try:
        return state.result(raise_on_failure=False)
    except Exception:  # a state without data; raised again by the caller as what it is
        return None


def finish(outcome: Outcome, stage: Stage | None = None) -> Any:
    """End a flow: in Prefect with a state whose message is the outcome's sentence, else with the outcome itself."""
    if stage is not None:
        stage.counts = {key: value for key, value in outcome.counts.items() if isinstance(value, int | float)}
        stage.state = "damaged" if outcome.damaged else "completed"
    logger.info(outcome.sentence)
    if not recording():
        return outcome
    from prefect.context import FlowRunContext
    from prefect.states import Completed, Failed

    context = FlowRunContext.get()
    assert context is not None  # `recording` has looked
    workspace = workspace_name(context.parameters or {})
    publish_outcome(outcome, workspace)
    if stage is not None:  # a night is told of by its stages
        tell_outcome(outcome, workspace)
    kind = Failed if outcome.damaged else Completed
    return kind(message=outcome.sentence, data=outcome)


def sentence(verb: str, counts: dict[str, int], reasons: dict[str, int], nothing: str) -> str:
    """The one sentence of a run: 'encode: 412 series encoded, 3 below the gate: BELOW_MIN_PSNR 3', or `nothing`."""
    parts = [f"{count:,} {what}" for what, count in counts.items() if count]
    text = ", ".join(parts) if parts else nothing
    return f"{verb}: {text}" + (
        f": {', '.join(f'{code} {n}' for code, n in sorted(reasons.items()))}" if reasons else ""
    )
