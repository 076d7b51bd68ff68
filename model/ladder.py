"""The ladder of a series that misses its gate: more levels, then a layer that bounds the error, then the volume only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from archive.codes import Codes
from archive.commit import Committed
from archive.errors import InputError
from archive.settings import GateSettings
from model.certificate import Certificate, certify, judge
from model.decoded import DecodedVolume
from model.encode import encode_volume
from model.vqvae import VQVAE

FIRST_LOOK = 8  # slices that show whether an error bound is out of the codes' reach: mostly it is
Store = Callable[[Codes, float | None], tuple[Committed, Codes]]


@dataclass(frozen=True)
class Rung:
    """A version of codes on disk, as it reads back, and what it is worth."""

    committed: Committed
    codes: Codes
    certificate: Certificate


def climb(
    model: VQVAE,
    volume: Any,
    first: tuple[Committed, Codes],
    gate: GateSettings,
    store: Store,
    drop: Callable[[Committed], None],
    *,
    sample: int | None = None,
    seed: str = "",
) -> Rung:
    """The first rung that passes the gate; where none does, the codes that came nearest, their certificate failing.

    first: the codes as committed and read back. store(codes, max_error): commits a further version, with the layer
    that bounds the error unless None. drop(committed): removes a version that another rung took the place of; the one
    returned is never dropped, and no other is left, whatever is raised. sample, seed: as for certify. `rungs` of the
    certificate lists each with its levels, bytes and figures. Raises what encoding, storing and measuring raise.
    """
    rungs: list[dict[str, Any]] = []
    made: list[Committed] = []

    def look(stored: tuple[Committed, Codes], name: str = "codes") -> Rung:
        committed, codes = stored
        made.append(committed)
        found = Rung(committed, codes, _measure(model, volume, committed, codes, gate, sample, seed))
        rungs.append(_figures(name, found))
        return found

    best = None
    try:
        best = look(first)
        asked = best.codes
        if not best.certificate.passed and asked.levels < model.config.code_levels:
            whole = encode_volume(
                model,
                volume,
                profile=asked.profile,
                model_id=asked.model,
                source_version=asked.source_version,
                source_digest=asked.source_digest,
            )
            for levels in (stop for stop in model.config.stops if stop > asked.levels):
                best = look(store(replace(whole, array=whole.array[:levels], levels=levels), None))
                if best.certificate.passed:
                    break
        if not best.certificate.passed and gate.max_error is not None:
            try:
                # The codes that were asked for: with the layer beside them, more levels buy nothing.
                best = look(store(asked, gate.max_error), "bounded")
            except InputError as error:
                if error.code != "NOT_BOUNDABLE":
                    raise
                reasons = (*best.certificate.reasons, error.code)
                best = replace(best, certificate=replace(best.certificate, reasons=reasons))
        rung = rungs[-1]["rung"] if best.certificate.passed else "volume"
        return replace(best, certificate=replace(best.certificate, rung=rung, rungs=tuple(rungs)))
    except BaseException:
        best = None
        raise
    finally:
        for committed in made:
            if best is None or committed.version != best.committed.version:
                drop(committed)


def _measure(
    model: VQVAE,
    volume: Any,
    committed: Committed,
    codes: Codes,
    gate: GateSettings,
    sample: int | None,
    seed: str,
) -> Certificate:
    """A certificate; where a few slices are already over the bound, of those alone, and it says so."""
    decoded = DecodedVolume(model, codes)
    if gate.max_error is not None and codes.bounded is None:
        few = certify(
            volume,
            decoded,
            codes,
            committed.bytes,
            gate.model_copy(update={"max_error": None}),
            peer=False,
            sample=FIRST_LOOK,
            seed=seed,
        )
        reasons = judge(gate, few.psnr, few.ssim, few.max_error)
        if "ABOVE_MAX_ERROR" in reasons:
            return replace(few, passed=False, reasons=reasons)
    return certify(volume, decoded, codes, committed.bytes, gate, sample=sample, seed=seed)


def _figures(name: str, found: Rung) -> dict[str, Any]:
    """What the certificate keeps of a rung; it lies in the catalog once for each series, so it is short."""
    certificate = found.certificate
    return {
        "rung": name,
        "levels": certificate.levels,
        "bytes": found.committed.bytes,
        "psnr": round(certificate.psnr, 3),
        "ssim": None if certificate.ssim is None else round(certificate.ssim, 5),
        "max_error": certificate.max_error,
        "checked_slices": certificate.checked_slices,
        "passed": certificate.passed,
    }
