"""How much of its codebooks each default preset uses: trained on the shared data of its modality, then counted.

    python benchmarks/codebook_use.py ../shared/data --presets mr-2d,pet-3d --seconds 240

The goal is above 90 % on every level. Counted are the codes that the published model gives for patches of what it was
trained on, as they are drawn for training but with intensities as they are: as many as 128 batches, which is what a
codebook is for; a few slices hold fewer codes than a codebook has. Perplexity stands beside it, since a code that
occurs once counts as used. Prints a table on stderr and one JSON line on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scores import machine, table

from archive.settings import TrainSettings
from archive.volumes import StoredVolume
from archive.workspace import Workspace
from flows.ingest import ingest
from model import bundle
from model.config import ModelConfig, intensity_for, resolve
from model.metrics import histogram, perplexity, use
from model.patches import PatchSampler
from model.source import as_source, channels
from model.train import train
from model.vqvae import VQVAE

GOAL = 0.9
BATCHES = 128
FOLDERS = ("series", "train", "projection_us", "codecs/wg04")
KINDS = {  # modalities, by how a preset begins; the shared data have no SPECT and only coloured ultrasound
    "ct": ("ct",), "mr": ("mr",), "pet": ("pt",), "nm": ("nm", "pt"), "us": ("us",), "rgb": ("us", "picture"),
    "xray": ("cr", "dx", "mg"), "nifti": ("nifti",), "picture": ("picture",)
}  # fmt: skip
COLOURS = {"us": 3, "rgb": 3}
PRESETS = "ct-2d,ct-3d,mr-2d,mr-3d,pet-2d,pet-3d,nm-3d,us-2d,xray-2d,nifti-2d,picture-2d,rgb-2d"


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--presets", default=PRESETS, metavar="PRESET[,PRESET…]")
    parser.add_argument("--seconds", type=float, default=240.0, help="of each training, everything included")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workspace", type=Path, help="where the data stay ingested; none: a temporary folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    with TemporaryDirectory() as spare:
        home = ingested(arguments.data, arguments.workspace or Path(spare))
        for preset in arguments.presets.split(","):
            volumes = volumes_for(home, preset)
            if not volumes:
                print(f"{preset}: nothing of its modality in {arguments.data}", file=sys.stderr)
                continue
            rows.append(of_preset(preset, volumes, arguments.seconds, arguments.threads))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    columns = ["preset", "series", "pieces", "steps", "psnr", "codebook_size", "codes", "use", "perplexity"]
    sys.stderr.write(table(rows, columns) + "\n")
    passed = all(min(row["use"]) > GOAL for row in rows)
    print(json.dumps({"benchmark": "codebook_use", **machine(), "results": rows, "goal": GOAL, "passed": passed}))


def ingested(data: Path, root: Path) -> Workspace:
    """The shared data in a workspace; nothing is read twice where it is there already."""
    home = Workspace.open(root, create=True)
    folders = [data / name for name in FOLDERS if (data / name).is_dir()]
    sources = [home.register_source(folder, exclude=["**/Ref/**"]) for folder in folders]
    ingest.fn(workspace=str(root), sources=sources, settings=["cluster=inline"])
    return Workspace.open(root)


def volumes_for(home: Workspace, preset: str) -> dict[str, StoredVolume]:
    """Series of the preset's modality and of one number of channels; for 3D those that are as deep as its patch."""
    start, _, ending = preset.partition("-")
    deepest = resolve(preset).patch[0]
    found = {}
    for row in home.catalog.series():
        volume = StoredVolume(home.volumes / row.series / row.volume_version)
        source = as_source(volume)
        fits = row.group.split("-")[0] in KINDS[start] and channels(source) == COLOURS.get(start, 1)
        if fits and (ending != "3d" or source.shape[-3] >= deepest):
            found[row.series] = volume
    return found


def of_preset(preset: str, volumes: Mapping[str, StoredVolume], seconds: float, threads: int) -> dict[str, Any]:
    """Train on all of it, then count."""
    first = as_source(next(iter(volumes.values())))
    modality = {"rgb": "PICTURE", "pet": "PT", "nm": "NM", "us": "US", "picture": "PICTURE"}.get(
        preset.split("-")[0], "MR"
    )
    mapping = intensity_for(modality, channels(first), first.units)
    settings = TrainSettings(threads=threads, holdout=0.0)
    config = resolve(preset, settings, channels=channels(first), intensity=mapping)
    with TemporaryDirectory() as folder:
        result = train(volumes, {}, config, settings, Path(folder), seconds)
        model = bundle.load(result.folder)
    counts = counted(model, volumes, config, settings.cache_bytes)
    return {
        "preset": preset,
        "series": len(volumes),
        "pieces": PatchSampler(volumes, config, 0, settings.cache_bytes).pieces,
        "steps": result.steps,
        "seconds": round(result.seconds),
        "psnr": round(result.psnr, 2),
        "codebook_size": config.codebook_size,
        "codes": int(counts[0].sum()),
        "use": [round(use(level), 3) for level in counts],
        "perplexity": [round(perplexity(level)) for level in counts],
    }


@torch.inference_mode()
def counted(model: VQVAE, volumes: Mapping[str, StoredVolume], config: ModelConfig, cache_bytes: int) -> np.ndarray:
    """Counts int64 [L, K] of the codes of BATCHES batches, drawn with another seed than the training's."""
    plain = config.model_copy(update={"jitter": 0.0})
    sampler = PatchSampler(volumes, plain, config.seed + 1, cache_bytes)
    total = np.zeros((config.levels, config.codebook_size), np.int64)
    for number in range(BATCHES):
        codes = model.encode(torch.from_numpy(sampler.batch(number)), config.levels)
        total += histogram(codes.movedim(1, 0).numpy(), config.codebook_size)
    return total


if __name__ == "__main__":
    main()
