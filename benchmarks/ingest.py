"""How fast an archive comes in, beside dcm2niix and dicom2nifti on the same files in the same run.

    python benchmarks/ingest.py --slices 2000 --peers /tmp/peers/bin        512x512 CT, uncompressed
    python benchmarks/ingest.py --slices 2000 --syntax rle                  the same, run-length coded
    python benchmarks/ingest.py --kind tiny --slices 50000                  MR of 16 x 16, many files
    python benchmarks/ingest.py --kind rescan --slices 100000               a second run over unchanged files

Makes the archive from noise and shapes (seeded), runs `voxbook ingest` as a command, start-up included, and each peer
that is there, and prints one JSON line: seconds of each and the ratios that the issue names, peak memory, versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLSLossless, MRImageStorage, RLELossless

ROOT = "1.2.826.0.1.3680043.10.999.7"
GOALS = {"dcm2niix_zy": 0.33, "dcm2niix_zn": 2.0, "dicom2nifti": 0.2}


@dataclass(frozen=True)
class Timed:
    """One command: wall seconds, and the most memory that any of its processes held."""

    seconds: float
    peak_mib: float
    output: str


def main() -> None:
    """Make, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=("ct", "tiny", "rescan"), default="ct")
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--per-series", type=int, default=250)
    parser.add_argument("--syntax", choices=("plain", "rle", "jpegls"), default="plain")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peers", type=Path, default=Path(sys.executable).parent, help="where dcm2niix is installed")
    parser.add_argument("--skip", nargs="*", default=[], choices=("dcm2niix_zy", "dcm2niix_zn", "dicom2nifti"))
    parser.add_argument("--folder", type=Path, default=None, help="keep archive and workspace here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="voxbook-bench-") as spare:
        folder = options.folder or Path(spare)
        print(json.dumps(measure(options, folder)))


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """Build the archive once, then time everything on it, the page cache warm for all alike."""
    archive = folder / f"{options.kind}-{options.syntax}-{options.slices}"
    if not archive.exists():
        build(archive, options)
    size = sum(len(path.read_bytes()) for path in archive.rglob("*.dcm"))  # read: into the page cache
    result: dict = {
        "benchmark": "ingest",
        "kind": options.kind,
        "syntax": options.syntax,
        "slices": options.slices,
        "megabytes": round(size / 1e6),
        "workers": options.workers,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "pydicom": pydicom.__version__,
    }
    workspace = folder / "workspace"
    shutil.rmtree(workspace, ignore_errors=True)
    ours = voxbook(archive, workspace, options.workers)
    result |= {"voxbook_s": round(ours.seconds, 2), "peak_mib_a_process": round(ours.peak_mib)}
    result["counts"] = json.loads(ours.output)
    if options.kind == "rescan":
        again = voxbook(archive, workspace, options.workers)
        counts = json.loads(again.output)
        return result | {
            "rescan_s": round(again.seconds, 2),
            "rescan_peak_mib": round(again.peak_mib),
            "rescan": counts,
        }
    for name, command in peers(archive, folder / "peer", options.peers).items():
        if name in options.skip:
            continue
        shutil.rmtree(folder / "peer", ignore_errors=True)
        (folder / "peer").mkdir()
        theirs = run(command)
        result |= {f"{name}_s": round(theirs.seconds, 2), f"ratio_{name}": round(ours.seconds / theirs.seconds, 3)}
    return result


def voxbook(archive: Path, workspace: Path, workers: int) -> Timed:
    """The command as a user types it."""
    words = ["ingest", str(archive), "-w", str(workspace), "--set", f"cluster.workers={workers}", "--json"]
    return run([sys.executable, "-m", "flows.cli", *words])


def peers(archive: Path, out: Path, place: Path) -> dict[str, list[str]]:
    """Commands of the peers that are installed at a place."""
    found = {}
    if (place / "dcm2niix").exists():
        for name, packed in (("dcm2niix_zy", "y"), ("dcm2niix_zn", "n")):
            found[name] = [str(place / "dcm2niix"), "-z", packed, "-o", str(out), str(archive)]
    if (place / "dicom2nifti").exists():
        found["dicom2nifti"] = [str(place / "dicom2nifti"), str(archive), str(out)]
    return found


def run(command: list[str]) -> Timed:
    """Run to its end and watch the memory of its processes. Raises CalledProcessError."""
    started = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(child, peak), daemon=True)
    watcher.start()
    output, errors = child.communicate()
    seconds = time.monotonic() - started
    if child.returncode:
        sys.stderr.write(errors[-2000:])
        raise subprocess.CalledProcessError(child.returncode, command[0])
    return Timed(seconds, peak[0], output)


def _watch(child: subprocess.Popen, peak: list[float]) -> None:
    while child.poll() is None:
        try:
            top = psutil.Process(child.pid)
            for process in (top, *top.children(recursive=True)):
                peak[0] = max(peak[0], process.memory_info().rss / 2**20)
        except psutil.Error:
            pass
        time.sleep(0.2)


def build(archive: Path, options: argparse.Namespace) -> None:
    """Series of `per_series` slices, every voxel of its own, so that no codec has it easier than with real ones."""
    side = 512 if options.kind == "ct" else 16
    random = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    # Air, a body, and noise of 20 HU, which is what makes CT hard to pack.
    body = np.where(x**2 + 1.6 * y**2 < 0.7, 1040, 24).astype(np.float32)
    noise = random.normal(0, 20, (16, side, side)).astype(np.float32)
    for number in range(options.slices):
        series, index = divmod(number, options.per_series)
        moved = np.roll(noise[index % 16], index // 16, axis=0)
        pixels = np.clip(body + 100 * np.cos(6 * x + index / 20) * (body > 500) + moved, 0, 4095).astype(np.uint16)
        place = archive / f"patient{series // 2:04d}" / f"series{series:05d}"
        place.mkdir(parents=True, exist_ok=True)
        header(options, series, index, pixels).save_as(place / f"{index:05d}.dcm", enforce_file_format=True)


def header(options: argparse.Namespace, series: int, index: int, pixels: np.ndarray) -> Dataset:
    """One slice with what a scanner writes of it."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage if options.kind == "ct" else MRImageStorage
    dataset.Modality = "CT" if options.kind == "ct" else "MR"
    dataset.SOPInstanceUID = f"{ROOT}.{series + 1}.{index + 1}"
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = f"{ROOT}.{series + 1}", f"{ROOT}.0.{series // 2 + 1}"
    dataset.FrameOfReferenceUID = f"{ROOT}.{series + 1}.0"
    dataset.PatientID, dataset.PatientName = f"bench-{series // 2}", "Bench^Mark"
    dataset.StudyDate, dataset.StudyTime = "20260101", "120000"
    dataset.Manufacturer, dataset.ImageType = "SIEMENS", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SeriesNumber, dataset.InstanceNumber = series + 1, index + 1
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelSpacing, dataset.SliceThickness = [0.7, 0.7], 1.0
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-180.0, -180.0, float(index)]
    if options.kind == "ct":
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType, dataset.KVP = 1, -1024, "HU", 120
    else:
        dataset.EchoTime, dataset.RepetitionTime, dataset.ScanningSequence = 3.0, 8.0, "GR"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    if options.syntax == "rle":
        dataset.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    if options.syntax == "jpegls":
        dataset.compress(JPEGLSLossless, encoding_plugin="pyjpegls", generate_instance_uid=False)
    return dataset


if __name__ == "__main__":
    main()
