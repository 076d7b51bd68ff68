"""Where batches run: cut by size, in this process, in local workers, on somebody's scheduler; workers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.errors import StoreError
from archive.settings import ClusterSettings
from tasks.cluster import batches_by_size, open_cluster


def double(batch: list[int]) -> list[int]:
    return [2 * item for item in batch]


def die_on_seven(batch: list[int]) -> list[int]:
    if 7 in batch:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch


def who(batch: list[int]) -> tuple[int, str, str]:
    return os.getpid(), os.environ.get("PYTHONSAFEPATH", ""), os.environ.get("OMP_NUM_THREADS", "")


@given(st.lists(st.integers(1, 50)), st.integers(1, 100), st.integers(1, 4))
def test_batches_keep_order_and_stay_within_the_limit(items, limit, workers):
    batches = batches_by_size(items, int, limit, workers)
    assert [item for batch in batches for item in batch] == items
    assert all(len(batch) == 1 or sum(batch) <= limit for batch in batches)
    assert batches == batches_by_size(items, int, limit, workers)


def test_nothing_to_do_starts_nothing():
    with open_cluster(ClusterSettings(address="tcp://127.0.0.1:9")) as cluster:
        assert list(cluster.run(double, [])) == []


def test_inline_runs_here():
    with open_cluster(ClusterSettings(address="inline")) as cluster:
        assert [done.result for done in cluster.run(double, [[1, 2], [3]])] == [[2, 4], [6]]
        assert next(cluster.run(who, [[1]])).result[0] == os.getpid()


def test_local_workers_are_other_processes_and_a_killer_is_singled_out():
    with open_cluster(ClusterSettings(workers=2)) as cluster:
        assert cluster.workers == 2
        pids = {done.result[0] for done in cluster.run(who, [[number] for number in range(8)])}
        assert os.getpid() not in pids
        assert all(done.result[1:] == ("1", "1") for done in cluster.run(who, [[1]]))
        done = [
            (item, done.result) for done in cluster.run(die_on_seven, [[1, 2], [6, 7, 8], [3]]) for item in done.items
        ]
    assert [item for item, _ in sorted(done, key=str)] == [1, 2, 3, 6, 7, 8]
    assert [item for item, result in done if result is None] == [7]


def test_a_scheduler_that_somebody_else_started_is_used_and_left_alone(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}  # noqa: PTH120
    address_file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    scheduler = subprocess.Popen(
        [*command, "--no-dashboard", "--scheduler-file", str(address_file)], env=environment, stderr=subprocess.DEVNULL
    )
    workers = []
    try:
        deadline = time.monotonic() + 60
        while not address_file.exists() or not address_file.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        import json

        address = json.loads(address_file.read_text())["address"]
        for number in range(2):
            folder = tmp_path / f"worker{number}"
            folder.mkdir()
            command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--host", "127.0.0.1"]
            command += ["--nthreads", "1", "--no-dashboard", "--no-nanny", "--local-directory", str(folder)]
            workers.append(subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL))
        with open_cluster(ClusterSettings(address=address)) as cluster:
            while cluster.workers < 2:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            results = sorted(item for done in cluster.run(double, [[1, 2], [3], [4]]) for item in done.result)
        assert results == [2, 4, 6, 8]
        assert scheduler.poll() is None
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait(20)


def test_a_scheduler_that_does_not_answer_is_an_error_with_a_hint(monkeypatch):
    import tasks.cluster

    monkeypatch.setattr(tasks.cluster, "CONNECT_SECONDS", 0.5)
    with open_cluster(ClusterSettings(address="tcp://127.0.0.1:9")) as cluster, pytest.raises(StoreError) as caught:
        list(cluster.run(double, [[1]]))
    assert "cluster=local" in caught.value.hint


def test_what_workers_import_leaves_prefect_out():
    modules = "archive.batches, tasks.encode, tasks.ingest, tasks.select, tasks.verify"
    code = f"import sys, {modules}; assert not [name for name in sys.modules if name.startswith('prefect')]"
    subprocess.run([sys.executable, "-c", code], check=True)  # it would double the time that a worker takes to start
