"""`--where`: a small, safe language of conditions on series, 'psnr < 38 and (modality = CT or not group in (mr, pt))'."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from archive.errors import ConfigError

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
Kind = Literal["number", "word", "id", "yes or no"]
# Of the series, then of the certificate of its current codes.
FIELDS: dict[str, tuple[Kind, str]] = {
    "series": ("id", "pseudonym, or the beginning of it"),
    "patient": ("id", "pseudonym, or the beginning of it"),
    "group": ("word", "ct, mr, ... or one of [groups]"),
    "modality": ("word", "DICOM Modality (0008,0060), NIFTI or PICTURE"),
    "state": ("word", "ingested, encoded, quality_failed, stale or removed"),
    "reason": ("word", "reason code on the series"),
    "source": ("word", "alias of its source"),
    "units": ("word", "of its voxels"),
    "dtype": ("word", "of its stored values"),
    "voxels": ("number", "over all axes"),
    "slices": ("number", "over all time points"),
    "first_seen": ("word", "when it came, UTC: 2026-11-22"),
    "last_seen": ("word", "when its source last had it, UTC"),
    "psnr": ("number", "dB"),
    "ssim": ("number", "mean over slices"),
    "mean_error": ("number", "absolute, in the volume's units"),
    "max_error": ("number", "absolute, in the volume's units"),
    "bits_per_voxel": ("number", "on disk, everything counted"),
    "entropy": ("number", "bits per voxel by the codes' zero-order entropy"),
    "ratio": ("number", "bytes of the stored values over bytes on disk"),
    "codebook_use": ("number", "share of codes that occur, mean over codebooks"),
    "jpeg2000_psnr": ("number", "dB of JPEG 2000 at the same bytes"),
    "levels": ("number", "residual levels stored"),
    "rung": ("word", "codes, bounded or volume: what kept its gate"),
    "unlike": ("number", "0 to 1: how unlike the training's its codes are"),
    "unlike_distances": ("number", "0 to 1: how unlike the training's its latents' distances are"),
    "model": ("id", "model of its codes, or the beginning of the id"),
    "profile": ("word", "exact or fast"),
    "passed": ("yes or no", "whether it passed its gate"),
    "expired": ("yes or no", "whether source or current model changed since"),
    "encoded_at": ("word", "when its codes were made, UTC"),
}
_OF_SERIES = ("series", "patient", "group", "modality", "state", "reason", "source", "units", "dtype", "voxels",
              "slices", "first_seen", "last_seen")  # fmt: skip
_OF_ROW = {"psnr": "psnr", "ssim": "ssim", "passed": "passed", "expired": "expired", "encoded_at": "created_at"}
_BITS = {"bits_per_voxel": "disk", "entropy": "entropy"}
_TOKEN = re.compile(r"\s*(?:(<=|>=|!=|=|<|>|\(|\)|,)|(\"[^\"]*\"|'[^']*')|([^\s()<>=!,\"']+))")


@dataclass(frozen=True)
class Comparison:
    """One field against one value (or, for `in`, several); None stands for `none`, a figure that is not there."""

    field: str
    operator: str
    values: tuple[float | str | bool | None, ...]


@dataclass(frozen=True)
class Every:
    """Parts joined by `and`."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Some:
    """Parts joined by `or`."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True)
class Negation:
    """`not inner`."""

    inner: Expression


Expression = Comparison | Every | Some | Negation


def parse(text: str) -> Expression:
    """Read a condition: FIELD OP VALUE with = != < <= > >=, FIELD [not] in (VALUE, …), and, or, not, parentheses.

    `not` binds closer than `and`, `and` closer than `or`. Words are compared without case, those with blanks are
    quoted. Raises ConfigError BAD_USAGE with the place, and the nearest field's name for one that does not exist.
    """
    try:
        return _Parser(text).whole()
    except RecursionError:
        raise ConfigError("BAD_USAGE", "--where is nested too deeply") from None


def matches(expression: Expression, series: Any, certificate: Any | None) -> bool:
    """Whether a SeriesRow with its CertificateRow (or none) meets a condition.

    As in SQL, a figure that is not there meets neither a comparison nor its `not`; `psnr = none` asks for it.
    """
    return _truth(expression, series, certificate) is True


def _truth(expression: Expression, series: Any, certificate: Any | None) -> bool | None:
    """True, False, or None for unknown (Kleene's logic)."""
    match expression:
        case Comparison():
            return _meets(expression, _value(expression.field, series, certificate))
        case Negation(inner):
            found = _truth(inner, series, certificate)
            return None if found is None else not found
        case Every(parts) | Some(parts):
            decisive = isinstance(expression, Some)  # one True settles an `or`, one False an `and`
            found_parts = [_truth(part, series, certificate) for part in parts]
            if decisive in found_parts:
                return decisive
            return None if None in found_parts else not decisive
    raise AssertionError(expression)


def _value(field: str, series: Any, certificate: Any | None) -> Any:
    if field == "slices":
        sizes = dict(zip(series.axes, series.shape, strict=True))
        return sizes["z"] * sizes.get("t", 1)
    if field in _OF_SERIES:
        return getattr(series, field)
    if certificate is None:
        return None
    if field in _OF_ROW:
        return getattr(certificate, _OF_ROW[field])
    if field in _BITS:
        return certificate.data.get("bits_per_voxel", {}).get(_BITS[field])
    return certificate.data.get(field)


def _meets(asked: Comparison, value: Any) -> bool | None:
    if None in asked.values:  # only = and != take it
        return (value is None) == (asked.operator == "=")
    if value is None:
        return None
    kind, _ = FIELDS[asked.field]
    if kind == "id":
        found = any(str(value).startswith(str(one).lower()) for one in asked.values)
        return found != (asked.operator == "!=")
    if kind == "number":
        return any(OPERATORS[asked.operator](float(value), one) for one in asked.values)
    if kind == "word":
        return any(OPERATORS[asked.operator](str(value).lower(), str(one).lower()) for one in asked.values)
    return OPERATORS[asked.operator](bool(value), asked.values[0])


@dataclass(frozen=True)
class _Token:
    """text without quotes; at: place in the whole, counted from 1."""

    text: str
    at: int
    quoted: bool = False

    @property
    def word(self) -> str:
        """In lower case where it may be a keyword or a sign; empty for a quoted one."""
        return "" if self.quoted else self.text.lower()


class _Parser:
    """Recursive descent, one token ahead."""

    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.next = 0

    @property
    def ahead(self) -> _Token:
        return self.tokens[self.next]

    def take(self) -> _Token:
        token = self.ahead
        self.next += token.word != "" or token.quoted  # the end stays
        return token

    def whole(self) -> Expression:
        found = self.either()
        if not _is_end(self.ahead):
            _refuse(self.ahead, f"{self.ahead.text!r} where `and`, `or` or the end was expected")
        return found

    def either(self) -> Expression:
        return self.joined("or", self.both, Some)

    def both(self) -> Expression:
        return self.joined("and", self.term, Every)

    def joined(self, word: str, part: Callable[[], Expression], kind: type[Every | Some]) -> Expression:
        found = [part()]
        while self.ahead.word == word:
            self.take()
            found.append(part())
        return found[0] if len(found) == 1 else kind(tuple(found))

    def term(self) -> Expression:
        if self.ahead.word == "not":
            self.take()
            return Negation(self.term())
        if self.ahead.word == "(":
            opened = self.take()
            inner = self.either()
            if self.ahead.word != ")":
                _refuse(self.ahead, f"the parenthesis opened at character {opened.at} is not closed")
            self.take()
            return inner
        return self.comparison()

    def comparison(self) -> Expression:
        name = self.take()
        field = name.word
        if not re.fullmatch(r"\w+", field):
            _refuse(name, "a field's name was expected" if _is_end(name) else f"{name.text!r} is no field's name")
        if field not in FIELDS:
            near = difflib.get_close_matches(field, FIELDS, n=1, cutoff=0.0)[0]
            hint = f"the nearest is {near!r}; all: {', '.join(FIELDS)}"
            _refuse(name, f"no field {field!r}", hint)
        sign = self.take()
        if sign.word == "not" and self.ahead.word == "in":
            self.take()
            return Negation(Comparison(field, "=", self.several(field)))
        if sign.word == "in":
            return Comparison(field, "=", self.several(field))
        if sign.word not in OPERATORS:
            _refuse(sign, f"one of {' '.join(OPERATORS)} or `in` was expected after {field!r}")
        return Comparison(field, sign.word, (self.value(field, sign.word),))

    def several(self, field: str) -> tuple[float | str | bool | None, ...]:
        if self.ahead.word != "(":
            _refuse(self.ahead, "`in` is followed by values in parentheses", "modality in (CT, MR)")
        found: list[float | str | bool | None] = []
        while not found or self.ahead.word == ",":
            self.take()
            found.append(self.value(field, "in"))
        if self.ahead.word != ")":
            _refuse(self.ahead, "`,` or `)` was expected")
        self.take()
        return tuple(found)

    def value(self, field: str, sign: str) -> float | str | bool | None:
        token = self.take()
        if _is_end(token) or token.word in ("(", ")", ",", *OPERATORS):
            _refuse(token, f"a value was expected after {field!r}")
        if token.word == "none":
            if sign not in ("=", "!="):
                _refuse(token, "`none` goes with = and != only")
            return None
        kind, _ = FIELDS[field]
        if kind == "number":
            try:
                number = float(token.text)
            except ValueError:
                number = float("nan")
            if number != number:
                _refuse(token, f"{field!r} is compared with numbers, not {token.text!r}")
            return number
        if kind == "word":
            return token.text
        if sign not in ("=", "!=", "in"):
            _refuse(token, f"{field!r} has no order, only = and !=")
        if kind == "id":
            return token.text
        if token.word not in ("yes", "no", "true", "false") or sign == "in":
            _refuse(token, f"{field!r} is = yes or = no")
        return token.word in ("yes", "true")


def _tokens(text: str) -> list[_Token]:
    found, at = [], 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            at = end - len(text[at:end].lstrip())
            _refuse(_Token(text[at], at + 1), f"{text[at]!r} begins nothing that is understood")
        sign, quoted, word = match.groups()
        start = max(match.start(1), match.start(2), match.start(3)) + 1
        found.append(_Token(quoted[1:-1] if quoted else sign or word, start, quoted=bool(quoted)))
        at = match.end()
    return [*found, _Token("", end + 1)]


def _is_end(token: _Token) -> bool:
    return not token.text and not token.quoted


def _refuse(token: _Token, what: str, hint: str = "") -> NoReturn:
    raise ConfigError(
        "BAD_USAGE",
        f"--where, at character {token.at}: {what}",
        hint=hint or "write it like 'psnr < 38 and (modality = CT or state in (stale, quality_failed))'",
    )
