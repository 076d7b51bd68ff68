"""Two models on the same series, by their certificates: better, worse, and by how much."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from archive.catalog_engine import reading
from archive.catalog_tables import certificates, encodings, series_table

if TYPE_CHECKING:
    from archive.catalog import Catalog
    from archive.settings import GateSettings

MOST_DB = 100.0  # an exact series counts as this much: 999 would drown all others in a mean
DB_PER_HALVING = 3.0  # what half of the bits costs a codec at these rates; JPEG 2000: 3 to 4 dB (docs/fidelity.md)
FEWER = 0.99  # bits that are this share of the others are fewer
SHOWN = 10  # worst series in JSON and table


@dataclass(frozen=True)
class Figures:
    """One series by one model. psnr: dB; ssim: None where slices are too small; bits_per_voxel: zero-order entropy."""

    psnr: float
    ssim: float | None
    bits_per_voxel: float
    passed: bool


@dataclass(frozen=True)
class Pair:
    """One series by the current model and by the candidate."""

    series: str
    current: Figures
    candidate: Figures

    @property
    def gain_db(self) -> float:
        """PSNR of the candidate minus that of the current model."""
        return self.candidate.psnr - self.current.psnr

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "gain_db": self.gain_db}


@dataclass(frozen=True)
class Comparison:
    """What a candidate gains over the current model on the series that both have encoded.

    gain_db, gain_ssim: means of candidate minus current. noise_db: the larger of the tolerance and twice the standard
    error of gain_db. bits: mean bits per voxel, current and candidate. better, same (within the tolerance), worse:
    series. failed: series that the candidate could not encode; fails_gate, passes_gate: that miss the gate now and did
    not before, and the other way round.
    """

    current: str
    candidate: str
    series: int
    better: int
    same: int
    worse: int
    gain_db: float
    noise_db: float
    gain_ssim: float | None
    bits: tuple[float, float]
    failed: int
    fails_gate: int
    passes_gate: int
    worst: tuple[Pair, ...]

    @property
    def is_worse(self) -> bool:
        """Whether the candidate should not replace the current model.

        It is worse when it misses the gate on more series (or fails to encode them), or when its mean PSNR drops by
        more than the noise and more than what its saving of bits is worth: 3 dB for half of the bits, nothing for as
        many or more. A higher PSNR at more bits is a choice, and not worse.
        """
        if self.failed + self.fails_gate > self.passes_gate:
            return True
        before, after = self.bits
        fewer = after < FEWER * before and after > 0
        saved_db = DB_PER_HALVING * math.log2(before / after) if fewer else 0.0
        return -self.gain_db > self.noise_db + saved_db

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        worst = [pair.as_dict() for pair in self.worst]
        return {**asdict(self), "bits": list(self.bits), "worst": worst, "is_worse": self.is_worse}


def compare(
    current: str, candidate: str, pairs: Sequence[Pair], *, tolerance_db: float, failed: int = 0
) -> Comparison | None:
    """Sum up pairs; None where there are none. tolerance_db: a difference of a series up to this is none."""
    if not pairs:
        return None
    gains = [pair.gain_db for pair in pairs]
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    similar = [
        pair.candidate.ssim - pair.current.ssim
        for pair in pairs
        if pair.candidate.ssim is not None and pair.current.ssim is not None
    ]
    return Comparison(
        current=current,
        candidate=candidate,
        series=len(pairs),
        better=sum(gain > tolerance_db for gain in gains),
        same=sum(abs(gain) <= tolerance_db for gain in gains),
        worse=sum(gain < -tolerance_db for gain in gains),
        gain_db=statistics.fmean(gains),
        noise_db=max(tolerance_db, 2 * error),
        gain_ssim=statistics.fmean(similar) if similar else None,
        bits=(
            statistics.fmean(pair.current.bits_per_voxel for pair in pairs),
            statistics.fmean(pair.candidate.bits_per_voxel for pair in pairs),
        ),
        failed=failed,
        fails_gate=sum(pair.current.passed and not pair.candidate.passed for pair in pairs),
        passes_gate=sum(pair.candidate.passed and not pair.current.passed for pair in pairs),
        worst=tuple(sorted(pairs, key=lambda pair: pair.gain_db)[:SHOWN]),
    )


def pairs_of(
    catalog: Catalog, group: str, current: str, candidate: str, settings_digest: str, gate: GateSettings
) -> list[Pair]:
    """The series of a group whose current volume both models have encoded, in order of their pseudonyms."""
    ours, theirs = (figures_of(catalog, group, model, settings_digest, gate) for model in (current, candidate))
    return [Pair(series, ours[series], theirs[series]) for series in sorted(ours.keys() & theirs.keys())]


def figures_of(
    catalog: Catalog, group: str, model: str, settings_digest: str, gate: GateSettings
) -> dict[str, Figures]:
    """By series, what the certificate of a model's undamaged codes of the current volume says.

    Codes by these settings go before others, newer ones before older; what was made by others is judged by this gate
    now. A series whose PSNR could not be measured is left out.
    """
    query = (
        select(encodings.c.series, encodings.c.settings_digest, certificates.c.passed, certificates.c.data)
        .join(certificates, certificates.c.version == encodings.c.version)
        .join(series_table, series_table.c.series == encodings.c.series)
        .where(
            series_table.c.group == group,
            series_table.c.volume_version == encodings.c.source_version,
            encodings.c.model == model,
            encodings.c.damage == "",
        )
        .order_by(encodings.c.settings_digest == settings_digest, encodings.c.created_at)
    )
    found: dict[str, Figures] = {}
    with reading(catalog.engine) as connection:
        for row in connection.execute(query):
            passed = row.passed if row.settings_digest == settings_digest else _passes(row.data, gate)
            figures = _figures(row.data, bool(passed))
            if figures is not None:
                found[row.series] = figures  # the last one wins
    return found


def _passes(data: Mapping[str, Any], gate: GateSettings) -> bool:
    limits = ((gate.min_psnr, "psnr", 1), (gate.min_ssim, "ssim", 1), (gate.max_error, "max_error", -1))
    asked = [(limit, data.get(name), sign) for limit, name, sign in limits if limit is not None]
    return all(found is not None and sign * found >= sign * limit for limit, found, sign in asked)


def _figures(data: Mapping[str, Any], passed: bool) -> Figures | None:
    psnr, bits = data.get("psnr"), data.get("bits_per_voxel", {}).get("entropy")
    if psnr is None or bits is None:
        return None
    return Figures(min(float(psnr), MOST_DB), data.get("ssim"), float(bits), passed)
