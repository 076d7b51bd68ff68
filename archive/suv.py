"""Standardised uptake value by body weight (SUVbw) of PET, from the header alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DAY = 86400.0  # seconds


def suv(headers: Sequence[dict[str, Any]], units: str) -> dict[str, float | str]:
    """`suv_factor` (SUVbw = Bq/ml times it, in g/ml), or `suv_missing` with the reason why there is none.

    Body weight in g over the dose in Bq, decayed to the start of the scan where the pixels are corrected to it
    (DecayCorrection START), as injected where they are corrected to the administration (ADMIN). Enhanced objects say to
    which time they are corrected (DecayCorrectionDateTime, 0018,9701). Else the start is
    SeriesTime, or the first AcquisitionTime where SeriesTime is later than it, as in post-processed series
    (QIBA's vendor-neutral recipe).
    """
    first = headers[0]
    if units != "BQML":
        return {"suv_missing": "UNITS"}
    if not {"ATTN", "DECY"} <= set(first["corrections"].split("\\")):
        return {"suv_missing": "NOT_CORRECTED"}
    if first["decay"] not in ("START", "ADMIN") and first["decayed_s"] is None:
        return {"suv_missing": "DECAY"}
    for key, reason in (("weight_kg", "WEIGHT"), ("dose_bq", "DOSE")):
        if not first[key] or first[key] <= 0:
            return {"suv_missing": reason}
    factor = first["weight_kg"] * 1000.0 / first["dose_bq"]
    if first["decay"] == "ADMIN":
        return {"suv_factor": factor}
    if not first["half_life_s"] or first["half_life_s"] <= 0:
        return {"suv_missing": "HALF_LIFE"}
    elapsed = _elapsed(headers)
    if elapsed is None:
        return {"suv_missing": "TIMES"}
    return {"suv_factor": factor * 2.0 ** (elapsed / first["half_life_s"])}


def _elapsed(headers: Sequence[dict[str, Any]]) -> float | None:
    """Seconds from injection to the start of the scan; None where the clocks do not tell, or not plausibly."""
    starts = [header["acquired_s"] for header in headers if header["acquired_s"] is not None]
    if headers[0]["series_s"] is not None:
        starts.append(headers[0]["series_s"])
    if headers[0]["decayed_s"] is not None:
        starts = [headers[0]["decayed_s"]]
    injected = headers[0]["injected_s"]
    if not starts or injected is None:
        return None
    start = min(starts)
    if injected < DAY or start < DAY:  # one of them is a time of day without a date
        return (start % DAY - injected % DAY) % DAY
    return start - injected if 0 <= start - injected < 10 * DAY else None
