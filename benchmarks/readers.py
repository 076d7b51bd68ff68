"""Readers in a loop while everything is encoded again, promoted and collected: errors and mixed results, both to be 0.

    python benchmarks/readers.py --series 40 --rounds 8 --readers 1

Volumes are committed directly (no DICOM), models are started and not trained. What a reader may get is made in memory
first: codes and decoded voxels of every series by each of two models, as sha256. Reader processes of four kinds then
read, in as many small pieces as they can, while each round encodes everything anew with the other model, promotes it
and calls gc: half of the rounds with the default grace, half with a short one, so that old versions do go.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("VOXBOOK_KEY", "a key for benchmarks that protects nothing")
GROUP = "ct"
KINDS = ("codes", "decoded", "dask", "held")
DEFAULT_GRACE = 3600.0


def lay_out(root: Path, count: int, shape: tuple[int, int, int], seed: int = 0) -> dict[str, dict[str, list[str]]]:
    """A workspace of random series and two models; returns by series and model the sha256 of codes and voxels."""
    import torch

    from archive import volumes
    from archive.catalog_schema import ModelRow, VolumeCommit
    from archive.geometry import Geometry
    from archive.volume import Volume
    from archive.workspace import Workspace
    from model import decode_codes, encode_volume
    from model.bundle import load, save
    from model.config import resolve
    from model.vqvae import VQVAE

    home = Workspace.open(root, create=True)
    networks = {}
    for number in range(2):
        torch.manual_seed(seed + number)
        model = VQVAE(resolve("tiny", channels=1, intensity="hu"))
        model.quantizer.start(torch.randn(200, model.config.code_dim))
        name = save(model.eval(), model.config, home.models, {})
        home.catalog.add_model(ModelRow(name, GROUP, "tiny"))
        networks[name] = load(home.models / name, name)
    torch.set_num_threads(1)  # as in the workers: codes are equal for equal threads
    rng = np.random.default_rng(seed)
    expected: dict[str, dict[str, list[str]]] = {}
    for number in range(count):
        series = hashlib.sha256(f"series {number}".encode()).hexdigest()[:32]
        voxels = rng.integers(-1000, 1000, shape).astype(np.int16)
        volume = Volume(voxels, "zyx", Geometry.pixels(shape, (2.5, 0.7, 0.7)), "CT", units="HU")
        committed = volumes.write(volume, home.volumes, series)
        entry = VolumeCommit.of(
            volume, committed, series=series, patient=series, group=GROUP, source="made", fingerprint=series,
            content_digest=volumes.content_digest(volume), source_bytes=voxels.nbytes,
        )  # fmt: skip
        home.catalog.commit_volumes([entry])
        expected[series] = {}
        for name, network in networks.items():
            codes = encode_volume(network, volume, model_id=name)
            expected[series][name] = [_digest(codes.array), _digest(decode_codes(network, codes).voxels)]
    home.close()
    return expected


def read(root: Path, kind: str, expected: dict[str, dict[str, list[str]]], stop: Path, reopen_s: float) -> dict:
    """Read everything again and again until `stop` is there; what came back and what did not."""
    from archive.errors import VoxbookError

    counts: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    seen: set[str] = set()
    longest, opened_at, codes = 0.0, 0.0, None
    while not stop.exists():
        if codes is None or kind != "held" or time.monotonic() - opened_at > reopen_s:
            codes, opened_at = _open(root, kind), time.monotonic()
        for series, by_model in expected.items():
            began = time.monotonic()
            try:
                model = _model_of(codes[series], kind, by_model)
            except (VoxbookError, OSError, ValueError, KeyError) as error:
                wrong[type(error).__name__ + " " + getattr(error, "code", "")] += 1
                continue
            counts["reads"] += 1
            counts["mixed"] += model is None
            seen.add(f"{series} {model}")
            longest = max(longest, time.monotonic() - began) if counts["reads"] > 1 else 0.0  # the first one imports
            stop.with_name(f"ready-{os.getpid()}").touch()
            if stop.exists():
                break
    return {
        "kind": kind,
        "reads": counts["reads"],
        "mixed": counts["mixed"],
        "errors": sum(wrong.values()),
        "of_what": dict(wrong),
        "series_by_model_seen": len(seen),
        "longest_read_s": round(longest, 3),
    }


def _open(root: Path, kind: str) -> Any:
    from archive import open_codes
    from model import open_decoded

    return open_codes(root) if kind in ("codes", "held") else open_decoded(root)


def _model_of(item: Any, kind: str, by_model: dict[str, list[str]]) -> str | None:
    """Read a series a few slices at a time; the model that gives just that, or None where it is of neither."""
    if kind in ("codes", "held"):
        slabs = [item.slab(z, z + 1) for z in range(item.shape[-3])]
        model = item.attributes["model"]
        return model if _digest(np.concatenate(slabs, axis=-3)) == by_model[model][0] else None
    slices = item.as_dask() if kind == "dask" else item
    found = _digest(np.concatenate([np.asarray(slices[z : z + 8]) for z in range(0, item.shape[0], 8)]))
    return next((model for model, (_, voxels) in by_model.items() if voxels == found), None)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def write(root: Path, rounds: int, cluster: str, grace: float, models: list[str]) -> dict:
    """Everything encoded anew with the other model, promoted and collected, as often as asked for."""
    from archive.catalog_schema import SeriesRow
    from archive.workspace import Workspace
    from flows.encode import encode
    from flows.gc import gc
    from flows.promote import promote

    done: Counter[str] = Counter()
    for number in range(rounds):
        short = number >= (rounds + 1) // 2
        # Another gate is another settings digest, and so another version of every series' codes.
        settings = [f"cluster={cluster}", f"gate.min_psnr={-100 - number}"]
        settings += [f"gc.grace_seconds={grace if short else DEFAULT_GRACE}"]
        model = models[(number + 1) % 2]
        done["encoded"] += encode.fn(workspace=str(root), model=model, settings=settings).counts["encoded"]
        promote.fn(workspace=str(root), model=model, force=True, settings=settings)
        removed = gc.fn(workspace=str(root), settings=settings).counts["folders"]
        done["removed_with_short_grace" if short else "removed_with_default_grace"] += removed
        if short:
            time.sleep(grace)
    rows: list[SeriesRow] = Workspace.open(root).catalog.series()
    done["not_encoded_at_the_end"] = sum(row.state != "encoded" for row in rows)
    return dict(done)


def measure(arguments: argparse.Namespace, base: Path) -> dict:
    """The whole benchmark in a folder of its own."""
    from scores import machine

    root, stop, known = base / "ws", base / "stop", base / "expected.json"
    expected = lay_out(root, arguments.series, tuple(arguments.shape), arguments.seed)
    known.write_text(json.dumps(expected))
    models = list(next(iter(expected.values())))
    from flows.encode import encode

    encode.fn(workspace=str(root), settings=[f"cluster={arguments.cluster}"])  # so that there is something to read
    command = [sys.executable, str(Path(__file__).resolve()), "--root", str(root), "--stop", str(stop)]
    command += ["--expected", str(known), "--grace", str(arguments.grace), "--kind"]
    readers = [
        subprocess.Popen([*command, kind], stdout=subprocess.PIPE)
        for kind in arguments.kinds
        for _ in range(arguments.readers)
    ]
    while len(list(base.glob("ready-*"))) < len(readers) and all(process.poll() is None for process in readers):
        time.sleep(0.05)
    began = time.monotonic()
    try:
        written = write(root, arguments.rounds, arguments.cluster, arguments.grace, models)
    finally:
        stop.touch()
        answers = [process.communicate(timeout=300)[0] for process in readers]
    found = [json.loads(answer) for answer in answers]
    return {
        "benchmark": "readers",
        "series": arguments.series,
        "shape": list(arguments.shape),
        "rounds": arguments.rounds,
        "seconds": round(time.monotonic() - began, 1),
        "grace_s": [DEFAULT_GRACE, arguments.grace],
        "written": written,
        "readers": found,
        "reads": sum(one["reads"] for one in found),
        "errors": sum(one["errors"] for one in found),
        "mixed": sum(one["mixed"] for one in found),
        **machine("zarr", "dask"),
    }


def main() -> None:
    """Measure, or be one of the readers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=40)
    parser.add_argument("--shape", type=int, nargs=3, default=[24, 128, 128])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--readers", type=int, default=1, help="processes of each of the four kinds")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--cluster", default="local")
    parser.add_argument("--grace", type=float, default=20.0, help="the short grace; longer than any one read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    for name in ("--root", "--stop", "--expected"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        expected = json.loads(arguments.expected.read_text())
        print(json.dumps(read(arguments.root, arguments.kind, expected, arguments.stop, arguments.grace / 2)))
        return
    with tempfile.TemporaryDirectory(prefix="voxbook-readers-") as base:
        found = measure(arguments, Path(base))
    from scores import table

    columns = ["kind", "reads", "errors", "mixed", "series_by_model_seen", "longest_read_s"]
    print(table(found["readers"], columns), file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
