"""The page is one well-formed file that loads nothing, escapes everything and shows every reason and figure."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from archive.errors import REASONS
from archive.phantoms import phantom
from flows.report_page import count, duration, number, render, verdict
from tasks.figures import SOFT_TISSUE, triptych
from tasks.report import last_outcomes
from tasks.report_changes import changes

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Checker(HTMLParser):
    """Collects what an open page would load and which tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                (self.anchors if (value or "").startswith("#") else self.loads).append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert all(load.startswith("data:image/webp;base64,") for load in checker.loads)
    assert {anchor[1:] for anchor in checker.anchors} <= set(checker.ids)
    assert len(checker.ids) == len(set(checker.ids))
    assert checker.tags.count("script") == 2  # the series as JSON, and the page's own, both inline
    assert not re.search(r"url\(|@import", page)
    return checker


def pictures() -> list[dict[str, Any]]:
    original, decoded = (phantom("ct-chest", (3, 128, 128), (5.0, 3.0, 3.0), 1, repeat=repeat)[1] for repeat in (0, 1))
    data = base64.b64encode(triptych(original, decoded, SOFT_TISSUE, (128, 128), 90.0)).decode()
    return [{"window": window, "planes": [{"plane": "axial", "picture": data}]} for window in ("soft tissue", "lung")]


def report(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    series, rate = [], []
    for index, group in enumerate(["ct"] * 14 + ["mr"] * 8 + ["nifti"] * 3 + ["pt"] * 6):
        name = f"{index * 2654435761 % 2**32:08x}" * 4
        psnr = float(rng.normal({"ct": 38, "mr": 34, "nifti": 30, "pt": 36}[group], 2.5))
        entry = {
            "series": name,
            "group": group,
            "modality": group.upper(),
            "shape": [40, 192, 192],
            "state": "quality_failed" if group == "ct" and psnr < 36 else "encoded",
            "psnr": psnr,
            "ssim": min(0.999, 0.9 + psnr / 500),
            "bits_per_voxel_disk": float(rng.uniform(0.08, 0.3)),
            "max_error": float(rng.uniform(80, 900)),
            "units": "HU" if group == "ct" else "a.u.",
            "reasons": ["BELOW_MIN_PSNR"] if group == "ct" and psnr < 36 else [],
        }
        series.append(entry)
        peer = None if index % 7 == 0 else psnr - float(rng.uniform(-2, 6))
        bits = entry["bits_per_voxel_disk"]
        rate.append({"series": name, "group": group, "bits_per_voxel": bits, "psnr": psnr, "jpeg2000_psnr": peer})
    unmeasured = {"psnr": None, "ssim": None, "bits_per_voxel_disk": None, "max_error": None, "state": "ingested"}
    series.append({**series[0], **unmeasured, "series": "f" * 32, "reasons": ["NO_MODEL"]})
    groups = [
        {
            "group": name,
            "series": sum(entry["group"] == name for entry in series),
            "voxels": 14_745_600,
            "model": "ab12cd34" * 8,
            "psnr_mean": 37.21,
            "psnr_worst_decile": 34.9,
            "ssim_mean": 0.951,
            "bits_per_voxel_fixed": 0.156,
            "bits_per_voxel_entropy": 0.121,
            "bits_per_voxel_disk": 0.163,
            "ratio": 98.2,
            "passed": 11,
            "failed": sum(entry["group"] == name and entry["state"] == "quality_failed" for entry in series),
            "gate": {"min_psnr": 36.0} if name == "ct" else {},
        }
        for name in ("ct", "mr", "nifti", "pt")
    ]
    failed = sum(entry["state"] == "quality_failed" for entry in series)
    data = {
        "title": "voxbook report",
        "workspace": "archive",
        "created": "2026-11-22T04:12:09+00:00",
        "run": "20261122T040000-ab12cd",
        "summary": {
            "series": len(series),
            "encoded": len(series) - failed - 1,
            "ingested": 1,
            "quality_failed": failed,
            "stale": 0,
            "quarantined": 5,
            "voxels": 58_982_400,
        },
        "stages": [
            {"stage": "ingest", "run": "r1", "state": "completed", "found": 37, "voxels": 58_982_400, "seconds": 21.4},
            {"stage": "train", "run": "r2", "state": "completed", "seconds": 840.0},
            {"stage": "encode", "run": "r3", "state": "completed", "series": 31, "voxels": 58_982_400, "seconds": 64.0},
        ],
        "groups": groups,
        "series": series,
        "worst": [{**entry, "figures": pictures()} for entry in series[:2]],
        "quarantine": [
            {"code": code, "count": 2, "text": REASONS[code].text, "hint": REASONS[code].hint}
            for code in ("MISSING_SLICE", "NOT_DICOM", "TRUNCATED")
        ],
        "models": [
            {
                "model": "ab12cd34" * 8,
                "group": "ct",
                "preset": "ct-2d",
                "current": True,
                "steps": 3000,
                "seconds": 361.2,
                "psnr": 37.2,
                "ssim": 0.951,
                "codebook_use": 0.97,
            }
        ],
        "rate": rate,
        "settings": {"gate": {"min_psnr": None}, "train": {"alpha": 0.8}},
        "versions": {"voxbook": "0.1.0", "python": "3.11.9"},
    }
    return {**data, **changes}


def test_page_is_well_formed_and_loads_nothing() -> None:
    page = render(report())
    checker = check(page)
    assert "svg" in checker.tags
    assert "Not for diagnostic use" in page and "patient data" in page
    points = page.count("<circle") + sum(
        d.count("M") for d in re.findall(r'class="points (?:ours|below)" d="([^"]*)"', page)
    )
    assert points == len(drawn_metrics(page)) * 31 + len(report()["rate"])


def drawn_metrics(page: str) -> list[str]:
    return re.findall(r'data-key="(\w+)"', page)


def test_every_reason_code_and_hint_is_shown() -> None:
    everything = [{"code": c, "count": 1, "text": r.text, "hint": r.hint} for c, r in REASONS.items()]
    page = render(report(quarantine=everything))
    check(page)
    assert all(f"<code>{code}</code>" in page for code in REASONS)
    assert page.count('<br><span class="hint">') >= len(REASONS)


def test_everything_is_escaped() -> None:
    bad = '"><script>alert(1)</script><img src="http://example.org/x">'
    base = report()
    entry = {**base["series"][0], "group": bad, "reasons": [bad], "units": bad}
    page = render(
        report(
            title=bad,
            workspace=bad,
            series=[entry],
            rate=[],
            worst=[{**entry, "figures": pictures()}],
            groups=[{**base["groups"][0], "group": bad}],
            quarantine=[{"code": bad, "count": 1, "text": bad, "hint": bad}],
            settings={"key": bad},
            versions={bad: bad},
        )
    )
    check(page)
    assert page.count("<script") == 2 and "alert(1)</script>" not in page and "&lt;script&gt;" in page


def test_an_empty_report_is_still_a_page() -> None:
    page = render({"summary": {}})
    check(page)
    assert "Nothing was found." in page and "<svg" not in page


@pytest.mark.parametrize(
    ("psnr", "shown"), [(None, "–"), (float("inf"), "∞"), (float("nan"), "–"), (41.234, "41.2"), (0.0, "0")]
)
def test_figures_that_are_missing_or_endless(psnr: float | None, shown: str) -> None:
    data = report()
    one = {**data["series"][0], "psnr": psnr}
    page = render(report(series=[one], rate=[{**data["rate"][1], "series": one["series"], "psnr": psnr}], worst=[]))
    check(page)
    assert f'<td class="n">{shown}</td>' in page


@pytest.mark.parametrize(
    ("summary", "tone", "says"),
    [
        ({}, "bad", "Nothing was found"),
        ({"series": 3, "encoded": 3}, "good", "All series encoded."),
        ({"series": 3, "encoded": 3, "quarantined": 2}, "watch", "2 quarantined"),
        ({"series": 3, "encoded": 2, "ingested": 1}, "watch", "1 series waits"),
        ({"series": 3, "encoded": 2, "quality_failed": 1, "quarantined": 4}, "bad", "1 series misses the gate"),
        ({"series": 3, "encoded": 3, "damaged": 1}, "bad", "repair"),
    ],
)
def test_verdict_says_the_worst_first(summary: dict[str, int], tone: str, says: str) -> None:
    found = verdict(summary)
    assert found.tone == tone and says in f"{found.headline} {found.detail}"


def waits(group: str, waiting: int, model: str | None) -> dict[str, Any]:
    return {"group": group, "waiting": waiting, "current_model": model}


@pytest.mark.parametrize(
    ("groups", "headline", "detail"),
    [
        ([waits("ct", 5, "ab12")], "5 series wait for encoding.", "5 not encoded or stale."),
        (
            [waits("ct", 0, "ab12"), waits("mr", 3, None), waits("pt", 2, None)],
            "5 series wait: no model for mr, pt.",
            "voxbook train makes the missing models, then voxbook encode.",
        ),
        (
            [waits("ct", 4, "ab12"), waits("mr", 1, None)],
            "5 series wait for encoding.",
            "1 of them has no model (mr): voxbook train makes it, then voxbook encode.",
        ),
    ],
)
def test_verdict_says_where_encoding_waits_for_a_model(groups: list, headline: str, detail: str) -> None:
    found = verdict({"series": 9, "encoded": 4, "ingested": 5}, [], groups)
    assert found.headline == headline and found.detail.endswith(detail)


def test_the_plot_of_unlike_says_what_it_is() -> None:
    data = report()
    page = render(report(series=[{**entry, "unlike": 0.2} for entry in data["series"]]))
    check(page)
    assert "0: its codes occur as often as in the training" in page and "0: its codes occur" not in render(data)


def ended(stage: str, state: str, why: str = "") -> dict[str, str]:
    return {"stage": stage, "run": "20261123T040000-ab12cd", "state": state, "why": why}


@pytest.mark.parametrize(
    ("last", "tone", "says"),
    [
        ([ended("ingest", "completed"), ended("encode", "completed")], "good", "All series encoded."),
        ([ended("encode", "failed", "DISK_FULL")], "bad", "The last encode did not succeed."),
        ([ended("encode", "failed", "DISK_FULL")], "bad", "encode failed: DISK_FULL (run 2026"),
        ([ended("ingest", "failed"), ended("verify", "cancelled")], "bad", "The last ingest and verify did not"),
        ([ended("train", "interrupted")], "bad", "train interrupted (run 2026"),
        ([ended("encode", "running")], "watch", "The last encode has not ended, or was killed."),
        ([ended("verify", "damaged")], "watch", "voxbook verify"),
    ],
)
def test_verdict_is_not_green_where_the_last_run_of_a_stage_was_not(last: list, tone: str, says: str) -> None:
    found = verdict({"series": 3, "encoded": 3}, last)
    assert found.tone == tone and says in f"{found.headline} {found.detail}"
    page = render(report(last=last, summary={"series": 3, "encoded": 3}))
    assert f'<header class="{tone}">' in page


def test_a_run_that_failed_is_forgiven_by_the_next_of_its_stage_only() -> None:
    def run(verb: str, state: str, at: str | None = "2026", **counts: str) -> Any:
        return SimpleNamespace(verb=verb, run="r", state=state, ended_at=at, counts=counts)

    runs = [run("ingest", "failed", code="NOT_FOUND"), run("encode", "failed", error="MemoryError")]
    runs += [run("ingest", "completed"), run("report", "failed"), run("verify", "started", None)]
    found = {entry["stage"]: (entry["state"], entry["why"]) for entry in last_outcomes(runs)}
    assert found == {"ingest": ("completed", ""), "encode": ("failed", "MemoryError"), "verify": ("running", "")}


def test_words_for_figures() -> None:
    assert [number(value) for value in (0.12345, 3.14159, 98.21, 12345.6)] == ["0.123", "3.14", "98.2", "12\u202f346"]
    assert [duration(value) for value in (2.0, 361.2, 7260)] == ["2.0 s", "6 min 01 s", "2 h 01 min"]
    assert count(1_000_000) == "1\u202f000\u202f000"


def test_changes_name_what_came_went_and_moved() -> None:
    before = report()
    series = [dict(entry) for entry in before["series"]]
    fallen = next(entry for entry in series if entry["state"] == "encoded")
    fallen["state"], fallen["psnr"] = "quality_failed", fallen["psnr"] - 3
    gone = series.pop()
    now = report(series=series, quarantine=[{**before["quarantine"][0], "count": 5}])
    found = changes(before, now)
    assert found is not None and found["run"] == before["run"]
    assert found["series"]["now below the gate"] == {"count": 1, "series": [fallen["series"]]}
    assert found["series"]["worse"]["series"] == [fallen["series"]]
    assert found["series"]["gone"]["series"] == [gone["series"]] and "new" not in found["series"]
    assert found["quarantine"] == {"MISSING_SLICE": 3, "NOT_DICOM": -2, "TRUNCATED": -2}
    page = render({**now, "changes": found})
    assert "1 now below the gate" in page and "+3" in page
    assert changes(before, before)["series"] == {} and changes(None, now) is None
