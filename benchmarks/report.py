"""How large a report of many series is, and how long a browser takes to open it and to answer.

    python benchmarks/report.py --series 10000

Draws report.json's content (figures from a seeded generator, pictures of phantoms), renders report.html, and opens it in
Chromium from disk: bytes, seconds from the call until the page has loaded and its script has run, seconds to find a
series. Prints one JSON line; exit 1 where the goals (15 MiB, 2 s) do not hold. Needs playwright and Chromium.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scores import machine

from archive.phantoms import phantom
from archive.planes import PLANES
from flows.report_page import render
from tasks.figures import BONE, LUNG, SOFT_TISSUE, triptych

GOAL_BYTES, GOAL_SECONDS = 15 * 2**20, 2.0
WORST = 20


def main() -> None:
    """Render, open, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="file to write the page to")
    arguments = parser.parse_args()
    started = time.perf_counter()
    page = render(drawn(arguments.series))
    rendered = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        path = (arguments.keep or Path(folder) / "report.html").resolve()
        path.write_text(page, encoding="utf-8")
        opened = opening(path, arguments.repeats)
    found = {
        "benchmark": "report",
        **machine("playwright", "jinja2"),
        "series": arguments.series,
        "bytes": len(page.encode()),
        "render_s": round(rendered, 3),
        **opened,
    }
    found["holds"] = found["bytes"] <= GOAL_BYTES and found["open_s"] <= GOAL_SECONDS
    print(json.dumps(found))
    sys.exit(0 if found["holds"] else 1)


def opening(path: Path, repeats: int) -> dict[str, float]:
    """Median seconds until the page has loaded, until a search has answered, and until 500 more rows are there."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import browsers

    open_s, find_s, more_s = [], [], []
    with browsers.chromium() as browser:
        for _ in range(repeats):
            page = browser.new_page()
            started = time.perf_counter()
            page.goto(path.as_uri(), wait_until="load")
            open_s.append(time.perf_counter() - started)
            started = time.perf_counter()
            page.click("#more") if page.is_visible("#more") else None
            more_s.append(time.perf_counter() - started)
            started = time.perf_counter()
            page.fill("#find", "below")
            page.wait_for_function("document.querySelector('#found').textContent.length > 0")
            find_s.append(time.perf_counter() - started)
            page.close()
    names = ("open_s", "more_s", "find_s")
    return {
        name: round(statistics.median(values), 3) for name, values in zip(names, (open_s, more_s, find_s), strict=True)
    }


def drawn(count: int) -> dict[str, Any]:
    """report.json's content of a made-up workspace; figures from a seeded generator, pictures of phantoms."""
    random = np.random.default_rng(0)
    groups = ("ct", "mr", "pt", "us")
    middle = {"ct": 38.0, "mr": 33.0, "pt": 36.0, "us": 31.0}
    series: list[dict[str, Any]] = []
    for index in range(count):
        group = groups[int(random.choice(4, p=(0.5, 0.3, 0.1, 0.1)))]
        psnr = float(random.normal(middle[group], 2.5))
        failed = psnr < middle[group] - 6
        series.append(
            {
                "series": f"{(index + 1) * 2654435761 % 2**32:08x}" * 4,
                "group": group,
                "modality": group.upper(),
                "shape": [int(random.integers(20, 300)), 512, 512],
                "state": "quality_failed" if failed else "encoded",
                "psnr": psnr,
                "ssim": float(random.beta(30, 2)),
                "bits_per_voxel_disk": float(random.gamma(20, 0.004)),
                "jpeg2000_psnr": psnr - float(random.normal(1, 1)),
                "max_error": float(random.gamma(4, 60)),
                "units": "HU" if group == "ct" else "a.u.",
                "rung": "codes",
                "unlike": float(random.beta(2, 12)),
                "codebook_use": float(random.beta(9, 2)),
                "reasons": ["BELOW_MIN_PSNR"] if failed else [],
            }
        )
    worst = sorted(series, key=lambda entry: entry["psnr"])[:WORST]
    pictures = _pictures()
    failed = sum(entry["state"] == "quality_failed" for entry in series)
    return {
        "title": "voxbook report",
        "workspace": "archive",
        "created": "2026-11-23T04:12:09+00:00",
        "run": "20261123T040000-ab12cd",
        "summary": {
            "series": count,
            "encoded": count - failed,
            "ingested": 0,
            "quality_failed": failed,
            "stale": 0,
            "quarantined": 2,
            "damaged": 0,
            "missing": 0,
            "voxels": sum(int(np.prod(entry["shape"])) for entry in series),
        },
        "stages": [{"stage": "encode", "run": "r3", "state": "completed", "series": count, "seconds": 6400.0}],
        "groups": [
            _group(name, [entry for entry in series if entry["group"] == name], middle[name]) for name in groups
        ],
        "series": series,
        "worst": [{**entry, "figures": pictures} for entry in worst],
        "changes": {
            "since": "2026-11-22T04:10:00+00:00",
            "run": "20261122T040000-ab12cd",
            "series": {"new": {"count": 3, "series": [entry["series"] for entry in series[:3]]}},
            "quarantine": {"MISSING_SLICE": 1},
            "models": [("ct", "ab12cd34" * 8)],
        },
        "quarantine": [{"code": "MISSING_SLICE", "count": 2, "text": "A slice is missing.", "hint": "Send it again."}],
        "models": [],
        "rate": [
            {
                "series": entry["series"],
                "group": entry["group"],
                "bits_per_voxel": entry["bits_per_voxel_disk"],
                "psnr": entry["psnr"],
                "jpeg2000_psnr": entry["jpeg2000_psnr"],
            }
            for entry in series
        ],
        "settings": {"gate": {"min_psnr": None}},
        "versions": {"voxbook": "0.1.0"},
    }


def _group(name: str, entries: list[dict[str, Any]], middle: float) -> dict[str, Any]:
    psnr = [entry["psnr"] for entry in entries] or [0.0]
    failed = sum(entry["state"] == "quality_failed" for entry in entries)
    return {
        "group": name,
        "series": len(entries),
        "voxels": sum(int(np.prod(entry["shape"])) for entry in entries),
        "model": "ab12cd34" * 8,
        "psnr_mean": float(np.mean(psnr)),
        "psnr_worst_decile": float(np.percentile(psnr, 10)),
        "ssim_mean": 0.93,
        "bits_per_voxel_fixed": 0.172,
        "bits_per_voxel_entropy": 0.09,
        "bits_per_voxel_disk": 0.06,
        "ratio": 200.0,
        "modalities": [name.upper()],
        "codebook": [{"modality": name.upper(), "series": len(entries), "use": 0.93, "perplexity": [812.0]}],
        "rungs": {"codes": len(entries)},
        "passed": len(entries) - failed,
        "failed": failed,
        "gate": {"min_psnr": middle - 6},
    }


def _pictures() -> list[dict[str, Any]]:
    import base64

    spacing = (5.0, 1.5, 1.5)
    original, decoded = (phantom("ct-chest", (3, 256, 256), spacing, 1, repeat=repeat)[1] for repeat in (0, 1))
    return [
        {
            "window": window.name,
            "planes": [
                {
                    "plane": plane,
                    "picture": base64.b64encode(triptych(original, decoded, window, (256, 256), 90.0)).decode(),
                }
                for plane in PLANES
            ],
        }
        for window in (SOFT_TISSUE, LUNG, BONE)
    ]


if __name__ == "__main__":
    main()
