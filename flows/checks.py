"""One thing that doctor looked at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """found: what is there, in words. hint: what to do about it; shown where it is not ok."""

    name: str
    ok: bool
    found: str
    hint: str = ""
