"""Where batches run: cut by size, in this process, in local workers, on somebody's scheduler; workers that die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.errors import ConfigError, MismatchError, StoreError
from archive.settings import ClusterSettings, SlurmSettings
from tasks import machine
from tasks.cluster import KILLS, WORKER_ENVIRONMENT, batches_by_size, open_cluster


def double(batch: list[int]) -> list[int]:
    return [2 * item for item in batch]


def die_on_seven(batch: list[int]) -> list[int]:
    if 7 in batch:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch


def die_on_seven_and_say_so(batch: list[tuple[int, str]]) -> list[int]:
    numbers = [number for number, _ in batch]
    if 7 in numbers:
        with open(batch[0][1], "a") as file:  # noqa: PTH123
            file.write(f"{len(batch)}\n")
        os.kill(os.getpid(), signal.SIGKILL)
    return numbers


def device(batch: list[int]) -> tuple[int, str]:
    time.sleep(0.2)
    return os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES", "")


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


@pytest.fixture
def elsewhere(tmp_path):
    """A scheduler and two workers that somebody else started, each with its own working directory."""
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}  # noqa: PTH120
    address_file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen([*command, "--no-dashboard", "--scheduler-file", str(address_file)], **quiet)]
    try:
        deadline = time.monotonic() + 60
        while not address_file.exists() or not address_file.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        address = json.loads(address_file.read_text())["address"]
        for number in range(2):
            folder = tmp_path / f"worker{number}"
            folder.mkdir()
            command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--host", "127.0.0.1"]
            command += ["--nthreads", "1", "--no-dashboard", "--no-nanny", "--local-directory", str(folder)]
            processes.append(subprocess.Popen(command, cwd=folder, **quiet))
        from distributed import Client

        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        yield address
        assert processes[0].poll() is None  # nobody ended what is not theirs
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait(20)


def test_a_scheduler_that_somebody_else_started_is_used_and_left_alone(elsewhere):
    with open_cluster(ClusterSettings(address=elsewhere)) as cluster:
        assert cluster.workers == 2
        results = sorted(item for done in cluster.run(double, [[1, 2], [3], [4]]) for item in done.result)
    assert results == [2, 4, 6, 8]


def test_encode_runs_on_workers_elsewhere_with_a_relative_workspace(elsewhere, workspace, monkeypatch):
    from archive.workspace import Workspace
    from flows.encode import encode

    monkeypatch.chdir(workspace.parent)
    settings = [f"cluster={elsewhere}", "encode.levels=1"]
    outcome = encode.fn(workspace=workspace.name, settings=settings)
    home = Workspace.open(workspace)
    assert outcome.counts["encoded"] == outcome.counts["series"] == len(home.catalog.series()) > 0
    assert {row.state for row in home.catalog.series()} == {"encoded"}


def test_workers_of_another_build_are_refused(elsewhere, monkeypatch):
    import tasks.cluster

    monkeypatch.setattr(tasks.cluster, "build", lambda: "0.0.1+00000000")
    with open_cluster(ClusterSettings(address=elsewhere)) as cluster, pytest.raises(MismatchError) as caught:
        list(cluster.run(double, [[1]]))
    assert caught.value.code == "VERSIONS" and "0.0.1+00000000" in caught.value.message


def test_a_killer_among_many_is_alone_after_few_deaths_and_is_given_three(tmp_path):
    deaths = tmp_path / "deaths"
    batch = [(number, str(deaths)) for number in range(20)]
    with open_cluster(ClusterSettings(workers=1)) as cluster:
        done = list(cluster.run(die_on_seven_and_say_so, [batch]))
    assert sorted(item[0] for one in done for item in one.items) == list(range(20))
    assert [one.items[0][0] for one in done if one.result is None] == [7]
    sizes = [int(line) for line in deaths.read_text().split()]
    assert sizes[-KILLS:] == [1, 1, 1]
    assert len(sizes) == 3 + KILLS  # 20 together, 3 together, 1 among others, then alone


def test_without_a_gpu_local_gpu_is_a_configuration_error(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with open_cluster(ClusterSettings(address="local-gpu")) as cluster, pytest.raises(ConfigError) as caught:
        list(cluster.run(double, [[1]]))
    assert "no GPU" in caught.value.message


def test_local_gpu_gives_each_worker_its_own_device(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    with open_cluster(ClusterSettings(address="local-gpu")) as cluster:
        assert cluster.workers == 2
        seen = {done.result for done in cluster.run(device, [[number] for number in range(12)])}
    assert len({pid for pid, _ in seen}) == 2
    assert {name for _, name in seen} == {"GPU-a", "GPU-b"}


def test_workers_fit_cores_memory_and_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cores() == 16
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "memory.max").write_text(f"{2 * machine.WORKER_BYTES}\n")
    assert (machine.cores(), machine.memory_bytes()) == (2, 2 * machine.WORKER_BYTES)
    (tmp_path / "cpu.max").unlink()
    assert machine.local_workers(gpu=True) == 2  # no GPU: what memory carries
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert (machine.local_workers(gpu=True), machine.local_workers(gpu=False)) == (1, 2)
    listed = "GPU 0: X (UUID: GPU-1)\n  MIG 1g 0: (UUID: MIG-2)\n  MIG 1g 1: (UUID: MIG-3)\nGPU 1: X (UUID: GPU-4)\n"
    assert machine.uuids(listed) == ["MIG-2", "MIG-3", "GPU-4"]


def test_the_slurm_job_script_says_what_the_settings_say(tmp_path):
    pytest.importorskip("dask_jobqueue")
    from tasks.slurm import job_script

    settings = SlurmSettings(
        queue="short", account="radiology", cores=6, memory="24GiB", walltime="02:30:00",
        directives=("--gres=gpu:1",), prologue=("module load cuda",), folder=str(tmp_path),
    )  # fmt: skip
    script = job_script(settings, WORKER_ENVIRONMENT)
    lines = script.splitlines()
    for wanted in ("-p short", "-A radiology", "--cpus-per-task=6", "--mem=24G", "-t 02:30:00", "--gres=gpu:1"):
        assert f"#SBATCH {wanted}" in lines
    start = next(number for number, line in enumerate(lines) if "dask_worker" in line)
    assert {"module load cuda", "export OMP_NUM_THREADS=1", "export PYTHONSAFEPATH=1"} <= set(lines[:start])
    assert "--nworkers 6" in lines[start] and "--nthreads 1" in lines[start]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_slurm_without_a_queue_is_a_configuration_error(monkeypatch, tmp_path):
    pytest.importorskip("dask_jobqueue")
    pytest.importorskip("cryptography")
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = ClusterSettings(address="slurm", slurm=SlurmSettings(folder=str(tmp_path), host="127.0.0.1"))
    with open_cluster(settings) as cluster, pytest.raises(ConfigError) as caught:
        list(cluster.run(double, [[1]]))
    assert "sbatch" in caught.value.message


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


def test_a_cluster_whose_workers_are_all_gone_is_said_to_be_so():
    from distributed.scheduler import NoValidWorkerError

    from tasks.cluster import _result

    future: Future = Future()
    future.set_exception(NoValidWorkerError("a-key-of-dask", set(), set(), set(), 1.0))
    with pytest.raises(StoreError) as caught:
        _result(future)
    assert caught.value.code == "NOT_FOUND" and "a-key" not in str(caught.value)
