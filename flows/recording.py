"""What a stage leaves in the Prefect UI: a sentence, a summary, tables; and how a stage runs without Prefect."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Callable
from typing import Any

from archive.errors import REASONS, ConfigError
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


def answers(url: str) -> bool:
    """Whether a Prefect API answers there; loopback and site servers answer in well under two seconds."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def run_stage(flow: Any, notice: Callable[[str], None], **parameters: Any) -> Outcome:
    """Run a flow where a Prefect API is configured and answers; else the same body directly, and say so in one line."""
    url = configured_api()
    if url and answers(url):
        refuse_secrets(parameters.get("settings", []))
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: url}):
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
    from prefect.states import Completed, Failed

    publish(outcome)
    kind = Failed if outcome.damaged else Completed
    return kind(message=outcome.sentence, data=outcome)


def publish(outcome: Outcome) -> None:
    """Artifacts of one finished stage: its counts, and every reason with what to do about it."""
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    rows = "\n".join(
        f"| {key} | {value} |" for key, value in outcome.counts.items() if not isinstance(value, list | dict)
    )
    create_markdown_artifact(
        f"{outcome.sentence}\n\n| count | value |\n|---|---|\n{rows}\n\nNot for diagnostic use.",
        key=f"voxbook-{outcome.verb}",
        description=outcome.sentence,
    )
    if outcome.reasons:
        create_table_artifact(
            [
                {"reason": code, "count": count, "what": REASONS[code].text, "what to do": REASONS[code].hint}
                for code, count in sorted(outcome.reasons.items())
            ],
            key=f"voxbook-{outcome.verb}-reasons",
            description="What was refused or is below its gate, and what to do about it",
        )


def sentence(verb: str, counts: dict[str, int], reasons: dict[str, int], nothing: str) -> str:
    """The one sentence of a run: '412 series encoded, 3 failed: BELOW_MIN_PSNR', or `nothing` where all was done."""
    parts = [f"{count} {what}" for what, count in counts.items() if count]
    text = ", ".join(parts) if parts else nothing
    return f"{verb}: {text}" + (
        f" ({', '.join(f'{code} {n}' for code, n in sorted(reasons.items()))})" if reasons else ""
    )
