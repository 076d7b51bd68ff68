"""`--where`: a small, safe language of conditions on series, 'psnr < 38 and modality = CT'."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from archive.errors import ConfigError

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
NUMBERS = ("psnr", "ssim", "voxels", "bits_per_voxel", "max_error")
WORDS = ("series", "patient", "group", "modality", "state", "model")
_CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|!=|=|<|>)\s*(\"[^\"]*\"|'[^']*'|[^\s]+)\s*")


@dataclass(frozen=True)
class Condition:
    """One comparison of a field with a value."""

    field: str
    operator: str
    value: float | str


def parse(text: str) -> list[Condition]:
    """Conditions joined by `and`; raises ConfigError BAD_USAGE with what is wrong."""
    conditions = []
    for part in re.split(r"\s+and\s+", text.strip(), flags=re.IGNORECASE):
        match = _CONDITION.fullmatch(part)
        if not match:
            raise ConfigError("BAD_USAGE", f"--where does not understand {part!r}", hint="write FIELD OP VALUE and ...")
        field, sign, value = match.group(1).lower(), match.group(2), match.group(3).strip("\"'")
        if field not in NUMBERS + WORDS:
            known = ", ".join(NUMBERS + WORDS)
            raise ConfigError("BAD_USAGE", f"--where knows no field {field!r}", hint=f"one of {known}")
        conditions.append(Condition(field, sign, _number(field, value) if field in NUMBERS else value))
    return conditions


def matches(conditions: list[Condition], series: Any, certificate: Any | None) -> bool:
    """Whether a SeriesRow with its CertificateRow (or none) meets every condition; an unmeasured figure meets none."""
    return all(_meets(condition, _value(condition.field, series, certificate)) for condition in conditions)


def _value(field: str, series: Any, certificate: Any | None) -> Any:
    if field in ("series", "patient", "group", "modality", "state", "voxels"):
        return getattr(series, field)
    if certificate is None:
        return None
    if field in ("psnr", "ssim"):
        return getattr(certificate, field)
    if field == "bits_per_voxel":
        return certificate.data["bits_per_voxel"]["disk"]
    return certificate.data.get(field)


def _meets(condition: Condition, value: Any) -> bool:
    if value is None:
        return False
    if isinstance(condition.value, str):
        return OPERATORS[condition.operator](str(value).lower(), condition.value.lower())
    return OPERATORS[condition.operator](float(value), condition.value)


def _number(field: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError("BAD_USAGE", f"--where compares {field} with numbers, not {text!r}") from None
