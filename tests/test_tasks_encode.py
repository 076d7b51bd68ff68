"""Encoding a group page by page: what is planned, leased, batched and counted."""

from __future__ import annotations

import pytest
import store_samples
from conftest import QUICK

from archive.catalog import ModelRow
from archive.catalog_conditions import Wanted
from archive.leases import Leases
from archive.workspace import Workspace
from tasks import encode as encoding
from tasks.cluster import cut
from tasks.encode import encode_group, wanted_of
from tasks.stage import Stage, open_stage

NAMES = [f"{number:032x}" for number in (3, 1, 2, 5, 4)]


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Five small CT that no model has coded, pages of two; what encodes them is `pretended`."""
    workspace = Workspace.open(tmp_path / "ws", create=True)
    for number, name in enumerate(NAMES):
        item = store_samples.volume(shape=(2, 16, 16), seed=number)
        workspace.catalog.commit_volumes([store_samples.volume_commit(workspace.volumes, item, name)])
    workspace.catalog.add_model(ModelRow(store_samples.MODEL, "ct", "tiny"))
    workspace.close()
    monkeypatch.setattr(encoding, "PAGE", 2)
    monkeypatch.setattr(encoding, "encode_batch", pretended)
    with open_stage("encode", tmp_path / "ws", [*QUICK, "cluster=inline", "encode.batch_series=1"]) as found:
        yield found


def pretended(jobs):
    """Records of codes that no model made."""
    found = []
    for job in jobs:
        codes = store_samples.codes(store_samples.volume(), job.source_version)
        item = store_samples.encoding_commit(job.codes, codes, job.series, settings=job.settings_digest)
        found.append(
            encoding.EncodeRecord(job, item.committed, {"psnr": 40.0, "ssim": 0.9, "passed": True, "reasons": []})
        )
    return found


def model_of(stage: Stage) -> ModelRow:
    return stage.catalog.current_model("ct")


def test_pages_cover_a_group_and_no_more_is_leased_than_they_hold(stage, monkeypatch):
    held = []

    def watched(jobs):
        held.append({lease.resource for lease in stage.leases.holders()})
        return pretended(jobs)

    monkeypatch.setattr(encoding, "encode_batch", watched)
    counts = encode_group(stage, "ct", model_of(stage))
    assert (counts.series, counts.encoded, counts.unchanged, counts.leased) == (5, 5, 0, 0)
    assert [len(one) for one in held] == [2, 1, 2, 1, 1]  # given back with their batch, of one series each
    assert not stage.leases.holders()
    again = encode_group(stage, "ct", model_of(stage))
    assert (again.series, again.encoded, again.unchanged) == (5, 0, 5)


def test_only_those_named_are_encoded(stage):
    counts = encode_group(stage, "ct", model_of(stage), NAMES[:3])
    assert (counts.series, counts.encoded) == (3, 3)
    left = stage.catalog.to_encode(wanted_of(stage, model_of(stage)))
    assert [row.series for row in left] == sorted(NAMES[3:])
    assert encode_group(stage, "ct", model_of(stage), []).series == 0


def test_what_another_run_holds_is_left_to_it_and_the_pages_go_on(stage):
    other = Leases(stage.catalog, stage.catalog.start_run("encode"))
    first, *_ = sorted(NAMES)
    assert other.acquire([f"series:{first}"])
    counts = encode_group(stage, "ct", model_of(stage))
    assert (counts.series, counts.encoded, counts.unchanged, counts.leased) == (5, 4, 0, 1)
    assert [lease.resource for lease in stage.leases.holders()] == [f"series:{first}"]


def test_what_another_run_finished_before_its_lease_was_taken_is_not_encoded_twice(stage, monkeypatch):
    acquire, job = stage.leases.acquire, {}

    def late(resources):
        if not job:  # between the plan and the lease
            rows = stage.catalog.to_encode(wanted_of(stage, model_of(stage)))
            job["one"] = encoding.plan_jobs(stage, rows[:1], model_of(stage))[0]
            stage.catalog.commit_encodings([encoding._commit(record) for record in pretended([job["one"]])])
        return acquire(resources)

    monkeypatch.setattr(stage.leases, "acquire", late)
    counts = encode_group(stage, "ct", model_of(stage))
    assert (counts.series, counts.encoded, counts.unchanged, counts.leased) == (5, 4, 1, 0)
    assert len(stage.catalog.encodings()) == 5


@pytest.mark.parametrize("code", sorted(encoding.LASTING))
def test_what_cannot_be_encoded_is_kept_with_its_reason_and_not_tried_every_night(stage, monkeypatch, code):
    bad, tried = sorted(NAMES)[1], []

    def failing(jobs):
        tried.extend(job.series for job in jobs)
        return [
            encoding.EncodeRecord(record.job, None, None, code) if record.job.series == bad else record
            for record in pretended(jobs)
        ]

    monkeypatch.setattr(encoding, "encode_batch", failing)
    first = encode_group(stage, "ct", model_of(stage))
    assert (first.series, first.encoded, first.failed, first.refused) == (5, 4, 1, 0)
    (kept,) = stage.catalog.quarantine()
    assert (kept.key, kept.code, kept.group, kept.kind) == (bad, code, "ct", "series")
    second = encode_group(stage, "ct", model_of(stage))
    assert (second.series, second.unchanged, second.failed, second.refused) == (5, 4, 0, 1)
    assert tried.count(bad) == 1
    stage.catalog.add_model(ModelRow("e" * 64, "ct", "tiny"))
    other = stage.catalog.model("e" * 64)
    assert encode_group(stage, "ct", other).failed == 1 and tried.count(bad) == 2
    assert len(stage.catalog.quarantine()) == 1
    encode_group(stage, "ct", model_of(stage), [bad])  # asked for by name
    assert tried.count(bad) == 3
    monkeypatch.setattr(encoding, "encode_batch", pretended)
    assert encode_group(stage, "ct", model_of(stage), [bad]).encoded == 1
    assert stage.catalog.quarantine() == []


@pytest.mark.parametrize("code", ["DAMAGED", "NOT_WRITABLE", "UNEXPECTED"])
def test_what_may_pass_is_tried_again(stage, monkeypatch, code):
    monkeypatch.setattr(
        encoding, "encode_batch", lambda jobs: [encoding.EncodeRecord(job, None, None, code) for job in jobs]
    )
    for _ in range(2):
        counts = encode_group(stage, "ct", model_of(stage))
        assert (counts.failed, counts.refused, stage.catalog.quarantine()) == (5, 0, [])


def test_batches_end_at_so_many_series():
    assert list(cut(range(7), lambda item: 1, limit=5, most=3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(cut(range(7), lambda item: 2, limit=5, most=3)) == [[0, 1], [2, 3], [4, 5], [6]]


def test_the_catalog_answers_page_by_page(stage):
    catalog = stage.catalog
    wanted = Wanted("ct", store_samples.MODEL, "other")
    assert [row.series for row in catalog.to_encode(wanted, limit=2)] == sorted(NAMES)[:2]
    assert [row.series for row in catalog.to_encode(wanted, after=sorted(NAMES)[1], limit=2)] == sorted(NAMES)[2:4]
    assert [row.series for row in catalog.to_encode(wanted, NAMES[:3], limit=2)] == sorted(NAMES[:3])[:2]
    assert catalog.left_to_encode(wanted) == (5, 5 * 2 * 16 * 16)
    assert catalog.left_to_encode(wanted, NAMES[:2]) == (2, 2 * 2 * 16 * 16)
    assert catalog.left_to_encode(Wanted("mr", store_samples.MODEL, "other")) == (0, 0)
    assert [[row.series for row in rows] for rows in catalog.pages(limit=3)] == [sorted(NAMES)[:3], sorted(NAMES)[3:]]
    assert list(catalog.pages("mr")) == []
    assert catalog.count_series() == {"ct": 5}
    assert catalog.count_series(NAMES[:2], group="ct", state="ingested") == {"ct": 2}
    assert catalog.count_series(state="encoded") == {}
