"""voxbook's training against MONAI's VQVAE and vector-quantize-pytorch: same patches, same minutes, same bits.

    python benchmarks/train.py ../shared/data --minutes 2,6,15 --race 0.5,1 --leave-out ct_lidc_chest \\
        --leave-out sts001_flat_mixed --contestants ours,monai,monai-tuned,vqp

ours: `voxbook train`'s own function, one training per budget, its starting, measuring and saving included in the
minutes. monai: its tutorial's recipe; its rate is constant, so one run is measured at each mark. monai-tuned: the same
network with voxbook's loss and annealing, one run per budget. The clock of both stands still while they are measured.
vqp: ResidualVQ inside voxbook's autoencoder against voxbook's quantizer in the same plain loop for the same steps.

PSNR (4,095 HU for CT) and SSIM (scikit-image, window 7) on whole slices of series never trained on, evenly spread, and
encoded voxels per second, float32 and bfloat16. Prints a table on stderr and one JSON line on stdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from configs import config_of
from corrected import corrected
from held_out import DEFAULT_LEFT, Split, opened
from peers_model import Mark, Monai, OurAutoencoder, Trained, learn
from scores import Contestant, judge, machine, mean, table

from archive.settings import TrainSettings
from model import bundle
from model.config import ModelConfig
from model.metrics import perplexity, use
from model.patches import PatchSampler
from model.train import train
from model.vqvae import VQVAE

CONTESTANTS = ("ours", "monai", "monai-tuned", "vqp")
COLUMNS = ["contestant", "minutes", "steps", "psnr", "ssim", "fixed", "entropy", "use", "perplexity"]


def main() -> None:
    """Run the race."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=_numbers, default=[2.0, 6.0, 15.0], help="budgets of every contestant")
    parser.add_argument("--race", type=_numbers, default=[0.5, 1.0], help="more budgets of ours: how soon it is ahead")
    parser.add_argument("--group", default="ct", choices=[*DEFAULT_LEFT])
    parser.add_argument("--leave-out", action="append", default=[], metavar="FOLDER[/PATIENTS]")
    parser.add_argument("--contestants", type=lambda text: text.split(","), default=list(CONTESTANTS))
    parser.add_argument("--preset", metavar="PRESET[,KEY=VALUE…]", help="of ours; none: the group's own")
    parser.add_argument("--steps", type=int, default=600, help="of the two quantizers in one autoencoder")
    parser.add_argument("--slices", type=int, default=12, help="judged per series")
    parser.add_argument("--side", type=int, default=512, help="of the slices that encoding is timed on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--correct", action="append", default=[], type=float, metavar="STEP",
                        help="ours also with corrections of this step, of the same training")  # fmt: skip
    parser.add_argument("--keep", type=Path, help="where models of ours are kept, for benchmarks/fidelity.py")
    parser.add_argument("--workspace", type=Path, help="where the data stay ingested; none: a temporary folder")
    arguments = parser.parse_args()
    unknown = set(arguments.contestants) - set(CONTESTANTS)
    if unknown:
        parser.error(f"no contestant {', '.join(unknown)}; {', '.join(CONTESTANTS)}")
    torch.set_num_threads(arguments.threads)
    with opened(arguments.data, arguments.group, arguments.leave_out, arguments.workspace) as split:
        found = race(split, arguments)
    sys.stderr.write(report(found) + "\n")
    print(json.dumps(found))


def race(split: Split, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every contestant trained and judged; figures ready for JSON."""
    settings = TrainSettings(threads=arguments.threads, holdout=0.0, seed=arguments.seed)
    config = config_of(split, arguments.preset, settings)
    fair(config, arguments.contestants)
    rows: list[dict[str, Any]] = []
    speeds: dict[str, Any] = {}
    quantizers: dict[str, Any] = {}
    for name in arguments.contestants:
        if name == "ours":
            for minutes in sorted({*arguments.race, *arguments.minutes}):
                model, steps = ours(split, config, settings, minutes, arguments.keep)
                rows.append(judged(name, Trained(model), split, config, arguments.slices, minutes, steps))
                for step in arguments.correct:
                    finer = Trained(corrected(model, step, split))
                    rows.append(
                        judged(f"{name}, step {step:g}", finer, split, config, arguments.slices, minutes, steps)
                    )
            speeds[name] = encode_speed(model.encode, model, config, arguments.side)
        elif name == "vqp":
            quantizers = compare_quantizers(split, config, arguments)
        else:
            learner, found = monai(name, split, config, arguments)
            rows += found
            speeds.setdefault("monai", encode_speed(learner.codes, learner.net, config, arguments.side))
    return {
        "benchmark": "train",
        **machine("monai", "vector-quantize-pytorch", "scikit-image"),
        "group": split.group,
        "preset": config.preset,
        "encoder_kflop_per_voxel": round(VQVAE(config).encoder_kflop, 1),
        "learned_from": sorted(split.names[series] for series in split.learn)[:12],
        "unseen": sorted(split.names[series] for series in split.unseen)[:12],
        "slices_per_series": arguments.slices,
        "results": rows,
        "summary": summary(rows, speeds),
        "encode_voxels_per_second": speeds,
        "quantizers": quantizers,
    }


def fair(config: ModelConfig, contestants: list[str]) -> None:
    """Exit where the race would compare different things: 3D models, or MONAI's one code per 8 x 8 cell with more bits."""
    if config.dims != 2:
        raise SystemExit("this race is between 2D models: name a 2D preset")
    monai = any(name.startswith("monai") for name in contestants)
    if monai and (config.code_levels != 1 or config.downsample != (1, 8, 8)):
        raise SystemExit(
            "MONAI's VQVAE has one code per 8 x 8 cell, which is not as many bits: --preset PRESET,levels=1, or leave it out"
        )


def plain(config: ModelConfig) -> ModelConfig:
    """The config with nothing that only voxbook's quantizer has: no price of codes, no dropped levels."""
    off = {"rate_penalty": 0.0, "level_dropout": 0.0}
    return ModelConfig.model_validate({**config.model_dump(), **off})


def ours(
    split: Split, config: ModelConfig, settings: TrainSettings, minutes: float, keep: Path | None
) -> tuple[VQVAE, int]:
    """voxbook's own training for some minutes, everything included, and the steps it took; the bundle is kept."""
    with tempfile.TemporaryDirectory() as spare:
        models = keep / f"ours-{minutes:g}" if keep else None  # an older checkpoint there would be gone on with
        result = train(split.learn, split.patients, config, settings, Path(spare), 60.0 * minutes, models=models)
        return bundle.load(result.folder), result.steps


def monai(
    name: str, split: Split, config: ModelConfig, arguments: argparse.Namespace
) -> tuple[Monai, list[dict[str, Any]]]:
    """MONAI's VQVAE trained and judged at every mark; the last one trained, and a row per mark."""
    recipe = "tuned" if name == "monai-tuned" else "tutorial"
    rows: list[dict[str, Any]] = []
    learner = Monai(config, recipe, small=config.preset == "tiny")
    runs = [[minutes] for minutes in sorted(arguments.minutes)] if learner.anneals else [arguments.minutes]
    for number, minutes in enumerate(runs):
        learner = Monai(config, recipe, small=config.preset == "tiny") if number else learner
        sampler = PatchSampler(split.learn, config, config.seed, 2**31)

        def at_mark(mark: Mark, learner: Monai = learner) -> None:
            row = judged(name, learner, split, config, arguments.slices, mark.minutes, mark.steps)
            rows.append({**row, "step_ms": mark.step_ms})

        learn(learner, sampler, minutes, at_mark)
    return learner, rows


def compare_quantizers(split: Split, config: ModelConfig, arguments: argparse.Namespace) -> dict[str, Any]:
    """voxbook's quantizer and ResidualVQ in one autoencoder, for the same steps on the same patches.

    Neither prices codes nor drops levels (`plain`): they differ in how codebooks start, follow and revive, in nothing else.
    """
    config = plain(config)
    found: dict[str, Any] = {}
    for name in ("ours", "vqp"):
        learner = OurAutoencoder(config, name)
        sampler = PatchSampler(split.learn, config, config.seed, 2**31)
        marks: list[Mark] = []
        learn(learner, sampler, [1.0], marks.append, steps=arguments.steps)
        row = judged(name, learner, split, config, arguments.slices, marks[0].seconds / 60, marks[0].steps)
        found[name] = {**row, "step_ms": marks[0].step_ms, "quantizer_ms": quantizer_ms(learner, sampler)}
    psnrs = [found[name]["psnr"] for name in ("ours", "vqp")]
    found["psnr_ahead"] = round(psnrs[0] - psnrs[1], 2)
    found["step_ratio"] = round(found["vqp"]["step_ms"] / max(1e-9, found["ours"]["step_ms"]), 2)
    found["quantizer_ratio"] = round(found["vqp"]["quantizer_ms"] / max(1e-9, found["ours"]["quantizer_ms"]), 2)
    return found


def quantizer_ms(learner: OurAutoencoder, sampler: PatchSampler) -> float:
    """Milliseconds of the quantizer alone in training mode on one batch's latents, median of 9."""
    with torch.no_grad():
        latents = learner.net.encoder(torch.from_numpy(sampler.batch(0))).float()
    learner.net.train()
    lasted = _timed(lambda: learner.net.quantizer(latents), 9)
    return round(1000 * statistics.median(lasted), 2)


def judged(
    name: str, contestant: Contestant, split: Split, config: ModelConfig, slices: int, minutes: float, steps: int
) -> dict[str, Any]:
    """A contestant on every unseen series: means over them, and each."""
    found = [judge(contestant, volume, config.intensity, slices, split.names[series])
             for series, volume in split.unseen.items()]  # fmt: skip
    counts = np.sum([one.counts for one in found], axis=0)[: config.levels]  # of the codebooks
    return {
        "contestant": name,
        "minutes": round(minutes, 3),
        "steps": steps,
        "psnr": round(mean([one.score.psnr for one in found]) or 0.0, 2),
        "ssim": mean([one.score.ssim for one in found]),
        "fixed": mean([one.fixed for one in found]),
        "entropy": mean([one.entropy for one in found]),
        "use": [round(use(level), 4) for level in counts],
        "perplexity": [round(perplexity(level), 1) for level in counts],
        "series": [one.as_dict() for one in found],
    }


def encode_speed(
    encode: Callable[[torch.Tensor], Any], net: torch.nn.Module, config: ModelConfig, side: int = 512
) -> dict[str, float]:
    """Voxels per second from pictures to indices: whole square slices, two at a time, median of 5, the better of the
    two memory layouts, in float32 and under bfloat16 autocast."""
    net.eval()
    found: dict[str, Any] = {}
    x = torch.rand(2, config.channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name, half in (("float32", False), ("bfloat16", True)):
        best = 0.0
        for layout in (torch.contiguous_format, torch.channels_last):
            net.to(memory_format=layout)  # type: ignore[call-overload]
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                given = x.contiguous(memory_format=layout)
                lasted = statistics.median(_timed(lambda given=given: encode(given), 5))
            best = max(best, 2 * side * side / lasted)
        found[name] = round(best)
    return found


def _timed(work: Callable[[], Any], times: int) -> list[float]:
    work()
    lasted = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        lasted.append(time.perf_counter() - began)
    return lasted


def summary(rows: list[dict[str, Any]], speeds: dict[str, Any]) -> dict[str, Any]:
    """How far ours is ahead of the better of MONAI's two recipes at equal minutes, how soon, and how much faster."""
    mine = {row["minutes"]: row for row in rows if row["contestant"] == "ours"}
    theirs: dict[float, dict[str, Any]] = {}
    for row in rows:
        if row["contestant"].startswith("monai") and row["psnr"] > theirs.get(row["minutes"], {"psnr": -1.0})["psnr"]:
            theirs[row["minutes"]] = row
    found: dict[str, Any] = {}
    both = sorted(set(mine) & set(theirs))
    found["psnr_ahead"] = {f"{at:g}": round(mine[at]["psnr"] - theirs[at]["psnr"], 2) for at in both}
    for row in rows:
        if row["contestant"].startswith("ours, ") and row["minutes"] in both:
            ahead = found.setdefault(f"psnr_ahead{row['contestant'].removeprefix('ours')}", {})
            ahead[f"{row['minutes']:g}"] = round(row["psnr"] - theirs[row["minutes"]]["psnr"], 2)
    if theirs:
        last = theirs[max(theirs)]
        sooner = [at for at in sorted(mine) if mine[at]["psnr"] >= last["psnr"]]
        found["monai_final_psnr"] = last["psnr"]
        found["seconds_to_monai_final"] = round(60 * sooner[0]) if sooner else None
    if {"ours", "monai"} <= set(speeds):
        found["encode_ratio"] = {
            kind: round(speeds["ours"][kind] / speeds["monai"][kind], 1) for kind in speeds["ours"]
        }
    return found


def report(found: dict[str, Any]) -> str:
    """Markdown."""
    compared = [{**row, "contestant": f"quantizer: {name}"} for name, row in found["quantizers"].items()
                if isinstance(row, dict)]  # fmt: skip
    parts = [table(found["results"] + compared, COLUMNS)]
    each = [{**series, "contestant": row["contestant"], "minutes": row["minutes"]}
            for row in found["results"] + compared for series in row["series"]]  # fmt: skip
    parts.append(table(each, ["contestant", "minutes", "series", "psnr", "ssim", "fixed", "entropy"]))
    parts.append(json.dumps(found["summary"]))
    parts.append(json.dumps(found["encode_voxels_per_second"]))
    return "\n\n".join(parts)


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part]


if __name__ == "__main__":
    main()
