"""How far a stage is: one function that work calls and whoever shows it listens to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

logger = logging.getLogger("voxbook")

LOG_EVERY_S = 10.0


@dataclass(frozen=True)
class Step:
    """Where a stage stands: done of total, in `unit`, and a few words."""

    stage: str
    done: float
    total: float
    unit: str
    text: str = ""


_listeners: list[Callable[[Step], None]] = []
_readers: list[Callable[[str], None]] = []
_logged: dict[str, float] = {}


@contextmanager
def listening(listener: Callable[[Step], None]) -> Iterator[None]:
    """Show every step of the stages run inside to `listener`."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def reading(reader: Callable[[str], None]) -> Iterator[None]:
    """Give every line that stages run inside say to `reader`."""
    _readers.append(reader)
    try:
        yield
    finally:
        _readers.remove(reader)


def say(line: str) -> None:
    """A line that stays: to the readers and the log."""
    for reader in _readers:
        reader(line)
    logger.info(line)


def advance(stage: str, done: float, total: float, unit: str, text: str = "") -> None:
    """Tell the listeners where a stage stands, and the log at most every ten seconds."""
    step = Step(stage, done, total, unit, text)
    for listener in _listeners:
        listener(step)
    now = time.monotonic()
    if now - _logged.get(stage, -LOG_EVERY_S) >= LOG_EVERY_S or done >= total:
        _logged[stage] = now
        logger.info("%s: %.0f of %.0f %s%s", stage, done, total, unit, text and f", {text}")
