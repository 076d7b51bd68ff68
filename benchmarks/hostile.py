"""Hostile input: thousands of damaged DICOM files, each scanned and read; every one must end in a known outcome.

    python benchmarks/hostile.py --files 20000 --seed 1

The files that come with pydicom are cut, their bytes flipped in header and pixels, their lengths and numbers made to
lie, two of them spliced. Each mutant goes through archive.scan and archive.read_series in one of a few worker processes.
Prints one JSON line; exits 1 where an outcome is unclassified or a worker died. What a seed and a number make is always
the same file: `--only N --keep DIR` writes mutant N and shows its outcome.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import platform
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import pydicom
from pydicom.data import get_testdata_file

from archive import data_set, part10
from archive.decoder import PixelDecoder
from archive.errors import REASONS, InputError
from archive.keys import Pseudonyms
from archive.scan import scan
from archive.series import read_series
from archive.settings import IngestSettings

LARGEST_SEED = 400_000  # bytes
HANG_SECONDS = 120
DEAD = "unclassified: the worker died"
SETTINGS = IngestSettings(secondary_capture="accept", burned_in="accept")
LENGTHS = (0, 1, 2, 7, 0x7FFF, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
NUMBERS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PlanarConfiguration", "PixelSpacing", "ImageOrientationPatient", "RescaleSlope"),
    *("ImagePositionPatient", "PhotometricInterpretation", "TransferSyntaxUID", "SOPClassUID", "Modality"),
)
TEXTS = (b"", b"0", b"-1", b"nan", b"1e400", b"abc", b"65535", b"2147483647", b"1\\2", b"../../../tmp/x", b"\xff" * 8)


@dataclass(frozen=True)
class Seed:
    """One packaged file. values: (position, length, 4-byte length field?) of its elements; pixels: where they begin."""

    data: bytes = field(repr=False)
    values: tuple[tuple[int, int, bool], ...]
    numbers: tuple[tuple[int, int], ...]
    pixels: int


@dataclass(frozen=True)
class Judged:
    """What became of one mutant: a reason code, `read`, `skipped`, or `unclassified: TYPE at PLACE`."""

    number: int
    kind: str
    outcome: str
    seconds: float


@cache
def seeds() -> tuple[Seed, ...]:
    """The packaged DICOM files with and without pixels, in a fixed order."""
    found = []
    folder = Path(str(get_testdata_file("CT_small.dcm"))).parent
    for path in sorted(folder.glob("*.dcm")):
        data = path.read_bytes()
        if len(data) > LARGEST_SEED or not part10.looks_like_dicom(data[:132]):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        values, numbers, pixels = [], [], len(data)
        for part in (dataset.file_meta, dataset):
            implicit = part is dataset and bool(dataset.original_encoding[0])
            for tag in part.keys():  # noqa: SIM118  (iterating a Dataset converts its elements)
                raw = part.get_item(tag)
                place = getattr(raw, "value_tell", None) or getattr(raw, "file_tell", None)
                if place is None or place >= len(data):
                    continue
                length = getattr(raw, "length", None)
                long = implicit or getattr(raw, "VR", "SQ") in pydicom.valuerep.EXPLICIT_VR_LENGTH_32
                values.append((place, 0 if length in (None, 0xFFFFFFFF) else length, long))
                if pydicom.datadict.keyword_for_tag(tag) in NUMBERS and length:
                    numbers.append((place, length))
                if int(tag) in data_set.PIXELS:
                    pixels = place
        found.append(Seed(data, tuple(values), tuple(numbers), pixels))
    return tuple(found)


def mutant(number: int, seed: int) -> tuple[str, bytes]:
    """What was done to a packaged file, and the result; follows from the two numbers alone."""
    chance = random.Random(seed * 1_000_003 + number)
    source = chance.choice(seeds())
    kind = chance.choice(tuple(MUTATIONS))
    return kind, bytes(MUTATIONS[kind](source, chance))


def _truncate(source: Seed, chance: random.Random) -> bytes:
    return source.data[: chance.randrange(len(source.data))]


def _truncate_header(source: Seed, chance: random.Random) -> bytes:
    return source.data[: chance.randrange(132, max(133, min(source.pixels, len(source.data))))]


def _flip(source: Seed, chance: random.Random, start: int, end: int) -> bytearray:
    data = bytearray(source.data)
    for _ in range(chance.choice((1, 1, 2, 4, 8, 32))):
        data[chance.randrange(start, end)] = chance.randrange(256)
    return data


def _flip_header(source: Seed, chance: random.Random) -> bytearray:
    return _flip(source, chance, min(128, len(source.data) - 1), max(129, min(source.pixels, len(source.data))))


def _flip_pixels(source: Seed, chance: random.Random) -> bytearray:
    return _flip(source, chance, min(source.pixels, len(source.data) - 1), len(source.data))


def _lie_length(source: Seed, chance: random.Random) -> bytearray:
    data = bytearray(source.data)
    for _ in range(chance.choice((1, 1, 2))):
        place, length, long = chance.choice(source.values)
        lie = chance.choice((*LENGTHS, max(0, length - 1), length + 1, length + 2, chance.randrange(2**32)))
        size = 4 if long else 2
        data[place - size : place] = (lie % 2 ** (8 * size)).to_bytes(size, chance.choice(("little", "little", "big")))
    return data


def _lie_number(source: Seed, chance: random.Random) -> bytearray:
    data = bytearray(source.data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        place, length = chance.choice(source.numbers or ((140, 2),))
        if length == 2:
            value = chance.choice((0, 1, 2, 3, 7, 12, 15, 32, 33, 64, 255, 4096, 65535)).to_bytes(2, "little")
        else:
            value = chance.choice(TEXTS)[:length].ljust(length)
        data[place : place + length] = value
    return data


def _splice(source: Seed, chance: random.Random) -> bytes:
    other = chance.choice(seeds())
    if chance.random() < 0.5:  # one's header before another's pixels
        return source.data[: source.pixels] + other.data[other.pixels :]
    return source.data[: chance.randrange(len(source.data))] + other.data[chance.randrange(len(other.data)) :]


def _shift(source: Seed, chance: random.Random) -> bytes:
    """Bytes inserted, dropped, or repeated."""
    place, size = chance.randrange(len(source.data)), chance.choice((1, 2, 8, 100, 4096))
    before, after = source.data[:place], source.data[place:]
    return before + chance.choice((chance.randbytes(size), b"", after[:size] * 2)) + after[size:]


MUTATIONS = {
    "truncate": _truncate,
    "truncate-header": _truncate_header,
    "flip-header": _flip_header,
    "flip-pixels": _flip_pixels,
    "lie-length": _lie_length,
    "lie-number": _lie_number,
    "splice": _splice,
    "shift": _shift,
}


def judge(number: int, seed: int, folder: Path, decoder: PixelDecoder) -> Judged:
    """Scan one mutant as a source of its own, and read what was planned; a negative number is an unharmed seed."""
    kind, data = mutant(number, seed) if number >= 0 else ("unharmed", seeds()[-number - 1].data)
    path = folder / f"{number:06d}.dcm"
    path.write_bytes(data)
    began = time.monotonic()
    try:
        outcome = _outcome(path, decoder)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
        outcome = f"unclassified: {type(error).__name__} at {' < '.join(places[-1:-4:-1])}"
    finally:
        path.unlink(missing_ok=True)
    return Judged(number, kind, outcome, time.monotonic() - began)


def _outcome(path: Path, decoder: PixelDecoder) -> str:
    result = scan(path, pseudonyms=Pseudonyms(b"of no worth to anybody"), settings=SETTINGS)
    if result.plans:
        try:
            for plan in result.plans:
                volume = read_series(plan, settings=SETTINGS, decoder=decoder)
                if volume.voxels.size != plan.voxels or not np.isfinite(volume.geometry.affine).all():
                    return "unclassified: a volume that is not the planned one"
        except InputError as error:
            return _known(error.code)
        return "read"
    if result.findings:
        return _known(result.findings[0].code)
    return "skipped" if result.skipped else "unclassified: no outcome"


def _known(code: str) -> str:
    return code if code in REASONS and code != "UNEXPECTED" else f"unclassified: {code}"


def _work(numbers: Sequence[int], seed: int, answers: Connection) -> None:
    """A worker process: one answer per mutant, with the most memory it has had by then, in bytes."""

    def hang(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, hang)
    with tempfile.TemporaryDirectory() as folder, PixelDecoder(SETTINGS) as decoder:
        for number in numbers:
            signal.alarm(HANG_SECONDS)
            judged = judge(number, seed, Path(folder), decoder)
            signal.alarm(0)
            answers.send((judged, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


class _Worker:
    """A process with its share of the mutants, started again behind the one that kills it."""

    def __init__(self, numbers: Sequence[int], seed: int) -> None:
        self.left, self.seed = list(numbers), seed
        self.start()

    def start(self) -> None:
        self.answers, theirs = multiprocessing.Pipe(duplex=False)
        self.process = multiprocessing.Process(target=_work, args=(tuple(self.left), self.seed, theirs))
        self.process.start()
        theirs.close()

    def answer(self) -> tuple[Judged, int]:
        """The next answer; the death of the process is one, too."""
        try:
            judged, memory = self.answers.recv()
        except EOFError:
            self.process.join()
            judged, memory = Judged(self.left[0], "?", DEAD, 0.0), 0
        self.left.pop(0)
        if self.left and judged.outcome == DEAD:
            self.start()
        return judged, memory


def run(numbers: Iterable[int], seed: int, workers: int = 2) -> dict:
    """Judge these mutants, and the unharmed files first; the figures for the JSON line."""
    began, judged, memory = time.monotonic(), [], 0
    every = [*range(-len(seeds()), 0), *numbers]  # a reader that refuses everything must not look good
    shares = [_Worker(every[at::workers], seed) for at in range(min(workers, len(every)))]
    while busy := {share.answers: share for share in shares if share.left}:
        for ready in wait(list(busy)):
            one, most = busy[ready].answer()
            judged.append(one)
            memory = max(memory, most)
    for share in shares:
        share.process.join()
    outcomes = Counter(one.outcome for one in judged if one.number >= 0)
    unclassified = sorted((one for one in judged if one.outcome.startswith("unclassified")), key=lambda one: one.number)
    slowest = max(judged, key=lambda one: one.seconds)
    kinds = {kind: Counter(one.outcome for one in judged if one.kind == kind) for kind in MUTATIONS}
    return {
        "files": outcomes.total(),
        "seed": seed,
        "workers": workers,
        "unclassified": len(unclassified),
        "dead_workers": sum(one.outcome == DEAD for one in judged),
        "seconds": round(time.monotonic() - began, 1),
        "slowest_seconds": round(slowest.seconds, 2),
        "slowest": slowest.number,
        "worker_bytes": memory,
        "outcomes": dict(outcomes.most_common()),
        "unharmed": dict(Counter(one.outcome for one in judged if one.number < 0).most_common()),
        "by_kind": {kind: dict(found.most_common()) for kind, found in kinds.items()},
        "examples": [[one.number, one.kind, one.outcome] for one in unclassified[:20]],
    }


def main() -> int:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, metavar="N", help="one mutant, in this process")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="with --only: write the mutant there")
    arguments = parser.parse_args()
    if arguments.only is not None:
        kind, data = mutant(arguments.only, arguments.seed)
        if arguments.keep is not None:
            (arguments.keep / f"{arguments.only:06d}.dcm").write_bytes(data)
        with tempfile.TemporaryDirectory() as folder, PixelDecoder(SETTINGS) as decoder:
            print(kind, len(data), judge(arguments.only, arguments.seed, Path(folder), decoder))
        return 0
    result = run(range(arguments.files), arguments.seed, arguments.workers)
    result |= {"seeds": len(seeds()), "python": platform.python_version(), "pydicom": pydicom.__version__}
    print(json.dumps({"benchmark": "hostile", **result}))
    return 1 if result["unclassified"] or result["dead_workers"] else 0


if __name__ == "__main__":
    sys.exit(main())
