"""How fast an archive is encoded: against the same work in memory, MONAI's VQVAE, the machine's peak, one worker; RSS.

    python benchmarks/encode.py --workers 2 --series 24 --slices 16 --side 512 --rss-slices 2000 [--workspace WS]

All of one run: (1) throughput of `encode`'s stage body on a local cluster, start-up apart, over the same encoding and
certificates on volumes in memory by as many processes of one thread; (2) one process of one thread over MONAI's VQVAE
in its default size, whole slices and sliding windows, float32; (3) the share of the machine's own matrix-multiply peak;
(4) two workers over one; (5) peak RSS of a process that encodes a long CT from the store; and what certificates add.
The archive: drawn chest phantoms, or pieces of the CT that a workspace holds, committed as volumes directly. The model:
ct-2d, started, not trained (what it codes is worth little, what it costs is the same). Table on stderr, one JSON object
on stdout.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scores import machine, table

from archive import volumes as volume_store
from archive.catalog_schema import ModelRow, VolumeCommit
from archive.geometry import Geometry
from archive.phantoms import phantom
from archive.settings import GateSettings
from archive.volume import Volume
from archive.volumes import StoredVolume
from archive.workspace import Workspace
from model import bundle
from model.certificate import certify
from model.config import resolve
from model.decoded import DecodedVolume
from model.encode import encode_volume
from model.jobs import encode_batch, sample_of
from model.source import as_source, channel_slab
from model.vqvae import VQVAE
from tasks.encode import encode_group, plan_jobs
from tasks.stage import Stage, open_stage

GROUP = "ct"
DRAWN = 4  # phantoms that are drawn; the others are they, mirrored
BYTES = 10_000  # what a version is said to take where nothing is written
GATE = GateSettings()


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--series", type=int, default=24)
    parser.add_argument("--slices", type=int, default=16, help="of each series")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many, of every figure of time")
    parser.add_argument("--preset", default="ct-2d")
    parser.add_argument("--certify", default="auto", choices=["auto", "sample", "full"])
    parser.add_argument("--workspace", type=Path, help="an ingested workspace whose CT is cut into pieces")
    parser.add_argument("--rss-slices", type=int, default=2000, help="of the long CT; 0 leaves it out")
    parser.add_argument("--rss-certify", default="full", choices=["sample", "full"])
    parser.add_argument("--small", action="store_true", help="a tiny MONAI VQVAE, for tests")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        found = measure(arguments, Path(root))
    print(
        table([{"what": name, **row} for name, row in found["goals"].items()], ["what", "found", "goal"]),
        file=sys.stderr,
    )
    print(json.dumps(found))


def measure(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """All figures; `goals` has those that were asked for, with what was asked."""
    torch.set_num_threads(1)
    series = list(itertools.islice(pieces(arguments), arguments.series))
    names = lay_out(root / "ws", series, arguments.preset)
    model = bundle.load(next((root / "ws" / "models").glob("[0-9a-f]*")))
    voxels = sum(volume.voxels.size for volume in series)
    memory, flow = {}, {}
    for workers in sorted({1, arguments.workers}):
        memory[workers] = in_memory(root / "ws", names, model, workers, arguments)
        flow[workers] = in_flow(root / "ws", names, workers, arguments)
    alone = network_alone(model, series[0], arguments)
    peer = monai(series[0], arguments)
    most = arguments.workers
    goals = {
        "flow over memory": {"found": memory[most] / flow[most], "goal": ">= 0.85"},
        f"{most} workers over one": {"found": flow[1] / flow[most], "goal": ">= 1.7 of 2"},
        "over MONAI": {"found": alone["voxels_per_s"] / peer["voxels_per_s"], "goal": ">= 10"},
        "share of matmul peak": {"found": alone["gflops"] / alone["peak_gflops"], "goal": ""},
        "certificate adds": {"found": alone["certificate_share"], "goal": "< 0.4"},
    }
    found: dict[str, Any] = {
        "benchmark": "encode",
        **machine("distributed", "monai", "zarr"),
        "series": [len(series), *series[0].voxels.shape],
        "certify": arguments.certify,
        "memory_s": memory,
        "flow_s": flow,
        "flow_voxels_per_s": {workers: voxels / seconds for workers, seconds in flow.items()},
        "alone": alone,
        "monai": peer,
        "goals": goals,
    }
    if arguments.rss_slices:
        found["long"] = long_series(root / "ws", model, arguments)
        goals["peak RSS in GiB"] = {"found": found["long"]["peak_rss_gib"], "goal": "< 2"}
    return found


def pieces(arguments: argparse.Namespace) -> Iterator[Volume]:
    """CT volumes of `slices` slices, endlessly: phantoms, or parts of a workspace's series; then the same mirrored."""
    if arguments.workspace:
        stored = [StoredVolume(folder) for folder in sorted(arguments.workspace.glob("volumes.zarr/[0-9a-f]*/*"))]
        wanted = [volume for volume in stored if volume.units == "HU" and volume.axes == "zyx"]
        blocks = [
            (volume.slab_values(at, at + arguments.slices), volume.geometry)
            for volume in wanted
            for at in range(0, volume.slices - arguments.slices + 1, arguments.slices)
        ]
    else:
        shape = (arguments.slices, arguments.side, arguments.side)
        spacing = (2.0, 360 / arguments.side, 360 / arguments.side)
        blocks = [(phantom("ct-chest", shape, spacing, seed), None) for seed in range(DRAWN)]
    turns: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda values: values,
        lambda values: values[:, :, ::-1],
        lambda values: values[:, ::-1],
        lambda values: values[::-1],
    ]
    for turn in itertools.cycle(turns):
        for values, _ in blocks:
            voxels = np.ascontiguousarray(turn(np.rint(values).astype(np.int16)))
            yield Volume(voxels, "zyx", Geometry.pixels(voxels.shape), "CT", units="HU")


def lay_out(root: Path, series: list[Volume], preset: str) -> list[str]:
    """A workspace with these volumes and a started model as its group's current one; the series' names."""
    workspace = Workspace.open(root, create=True)
    workspace.catalog.register_source("bench", "folder")
    names = [f"{number:032x}" for number in range(1, len(series) + 1)]
    for name, volume in zip(names, series, strict=True):
        committed = volume_store.write(volume, workspace.volumes, name)
        item = VolumeCommit.of(
            volume, committed, series=name, patient=name, group=GROUP, source="bench", fingerprint=name,
            content_digest=committed.digest, source_bytes=volume.voxels.nbytes,
        )  # fmt: skip
        workspace.catalog.commit_volumes([item])
    torch.manual_seed(0)
    model = VQVAE(resolve(preset, channels=1, intensity="hu")).eval()
    x = torch.from_numpy(np.clip(as_source(series[0]).slab_values(0, 2), -1024, 3071) / 2048 - 0.5)[:, None]
    x = x[..., : x.shape[-2] // 32 * 32, : x.shape[-1] // 32 * 32]
    with torch.no_grad():
        model.quantizer.start(model.encoder(x).movedim(1, -1).flatten(0, -2))
    name = bundle.save(model, model.config, workspace.models, {})
    workspace.catalog.add_model(ModelRow(name, GROUP, preset))
    workspace.close()
    return names


def in_flow(root: Path, names: list[str], workers: int, arguments: argparse.Namespace) -> float:
    """Seconds of the stage's body, from its plan to its last row, on workers that have the model already."""
    best = float("inf")
    overrides = ["cluster.address=local", f"cluster.workers={workers}", f"encode.certify={arguments.certify}"]
    with open_stage("encode", root, overrides) as stage:
        row = stage.catalog.current_model(GROUP)
        assert row is not None  # lay_out made it
        rows = stage.catalog.series(names)
        warm(stage, rows, row, root.parent / "warm")
        for repeat in range(arguments.repeats):
            # A gate that nothing misses, another each time: the codes of the last repeat do not stand for it.
            gate = GateSettings(min_psnr=-1e6 - repeat - 100 * workers)
            stage.workspace.settings = stage.settings.model_copy(update={"gate": gate})
            began = time.perf_counter()
            counts = encode_group(stage, GROUP, row, names)
            best = min(best, time.perf_counter() - began)
            assert counts.encoded == len(names), counts
    return best


def warm(stage: Stage, rows: list, row: ModelRow, scratch: Path) -> None:
    """Let every worker load the model and encode once; what it writes lies elsewhere."""
    job = plan_jobs(stage, rows[:1], row)[0]
    jobs = [replace(job, series=f"{number:032x}", codes=scratch) for number in range(4 * stage.cluster.workers)]
    assert all(done.result for done in stage.cluster.run(encode_batch, [[job] for job in jobs]))


def in_memory(root: Path, names: list[str], model: VQVAE, workers: int, arguments: argparse.Namespace) -> float:
    """Seconds for the same encoding and certificates by processes that hold volumes and model, and write nothing."""
    context = multiprocessing.get_context("spawn")
    best = float("inf")
    folders = [next((root / "volumes.zarr" / name).iterdir()) for name in names]
    bundle_folder = root / "models" / model.model_id
    for _ in range(arguments.repeats):
        barrier, turn, done = context.Barrier(workers + 1), context.Value("i", 0), context.Queue()
        processes = [
            context.Process(target=_work, args=(folders, bundle_folder, arguments.certify, barrier, turn, done))
            for _ in range(workers)
        ]
        for process in processes:
            process.start()
        barrier.wait()
        began = time.perf_counter()
        for _ in processes:
            done.get()
        best = min(best, time.perf_counter() - began)
        for process in processes:
            process.join()
    return best


def _work(folders: list[Path], model_folder: Path, mode: str, barrier: Any, turn: Any, done: Any) -> None:
    """One process of `in_memory`: the next series that nobody has taken, until there are none."""
    torch.set_num_threads(1)
    model = bundle.load(model_folder)
    volumes = [StoredVolume(folder).read() for folder in folders]
    encode_and_certify(model, volumes[0], mode, "warm")
    barrier.wait()
    while True:
        with turn.get_lock():
            number = turn.value
            turn.value += 1
        if number >= len(volumes):
            break
        encode_and_certify(model, volumes[number], mode, folders[number].parent.name)
    done.put(True)


def encode_and_certify(model: VQVAE, volume: Volume, mode: str, seed: str) -> None:
    """The work itself."""
    codes = encode_volume(model, volume)
    certify(volume, DecodedVolume(model, codes), codes, BYTES, GATE, sample=sample_of(mode, 24, "cpu"), seed=seed)


def network_alone(model: VQVAE, volume: Volume, arguments: argparse.Namespace) -> dict[str, float]:
    """One thread: voxels a second of encoding, of the machine's matrix products, and what a certificate adds."""
    voxels = volume.voxels.size
    encoding = best_of(lambda: encode_volume(model, volume), arguments.repeats)
    both = best_of(lambda: encode_and_certify(model, volume, arguments.certify, "s"), arguments.repeats)
    matrix = torch.randn(1536, 1536)
    product = best_of(lambda: torch.mm(matrix, matrix), 5)
    return {
        "voxels_per_s": voxels / encoding,
        "kflop_per_voxel": model.encoder_kflop,
        "gflops": model.encoder_kflop * voxels / encoding / 1e6,
        "peak_gflops": 2 * 1536**3 / product / 1e9,
        "certificate_share": both / encoding - 1,
    }


def monai(volume: Volume, arguments: argparse.Namespace) -> dict[str, float]:
    """One thread: voxels a second of MONAI's VQVAE to indices; whole slices, or windows of 256 where that is faster."""
    from monai.inferers import SlidingWindowInferer
    from monai.networks.nets import VQVAE as MonaiVQVAE

    widths = (8, 8, 16) if arguments.small else (96, 96, 192)
    torch.manual_seed(0)
    net = MonaiVQVAE(
        spatial_dims=2, in_channels=1, out_channels=1, channels=widths, num_res_layers=1 if arguments.small else 3,
        num_res_channels=widths, downsample_parameters=((2, 4, 1, 1),) * 3,
        upsample_parameters=((2, 4, 1, 1, 0),) * 3, num_embeddings=2048, embedding_dim=32,
    ).eval()  # fmt: skip
    count = min(2, volume.slices)
    x = torch.from_numpy(np.clip(channel_slab(as_source(volume), 0, count), -1024, 3071) / 2048 - 0.5)
    window = min(256, volume.voxels.shape[-1])
    inferer = SlidingWindowInferer((window, window), sw_batch_size=1, overlap=0.25)
    with torch.inference_mode():
        whole = best_of(lambda: [net.index_quantize(one[None]) for one in x], arguments.repeats)
        sliding = best_of(lambda: [inferer(one[None], net.encode) for one in x], arguments.repeats)
    return {
        "voxels_per_s": x.numel() / min(whole, sliding),
        "whole_slice_s": whole / count,
        "sliding_window_s": sliding / count,
    }


def long_series(root: Path, model: VQVAE, arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak RSS of a process that encodes one CT of many slices from the store, certificate and all."""
    shape = (arguments.rss_slices, arguments.side, arguments.side)
    stored = np.broadcast_to(np.zeros((), np.int16), shape)
    header = Volume(stored, "zyx", Geometry.pixels(shape), "CT", units="HU")
    drawn = np.rint(phantom("ct-chest", (8, *shape[1:]), (2.0, 0.7, 0.7), 1)).astype(np.int16)
    _, committed = volume_store.write_slices(header, (drawn[z % 8] for z in range(shape[0])), root / "long", "f" * 32)
    assert committed is not None  # it is new
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    folder = root / "long" / committed.series / committed.version
    process = context.Process(target=_long, args=(folder, root, model.model_id, arguments.rss_certify, results))
    process.start()
    found = results.get()
    process.join()
    return {"shape": shape, "certify": arguments.rss_certify, **found}


def _long(folder: Path, root: Path, model: str, mode: str, results: Any) -> None:
    import distributed  # noqa: F401  # a worker has it

    from model.jobs import EncodeJob

    volume = StoredVolume(folder)
    job = EncodeJob(
        series=folder.parent.name, voxels=int(np.prod(volume.shape)), volume=folder, source_version=folder.name,
        source_digest="", codes=root / "long-codes", models=root / "models", model=model, profile="exact", levels=None,
        gate=GATE, settings_digest="", device="cpu", certify=mode,
    )  # fmt: skip
    began = time.perf_counter()
    (record,) = encode_batch([job])
    seconds = time.perf_counter() - began
    assert record.certificate is not None, record.code
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    results.put(
        {"peak_rss_gib": peak / 2**20, "seconds": seconds, "checked_slices": record.certificate["checked_slices"]}
    )


def best_of(work: Callable[[], Any], repeats: int) -> float:
    """Seconds of the quickest of `repeats`, after one that does not count."""
    work()
    lasted = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        lasted.append(time.perf_counter() - began)
    return min(lasted)


if __name__ == "__main__":
    main()
