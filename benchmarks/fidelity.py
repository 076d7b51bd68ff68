"""Fidelity at equal bytes: voxbook's codes beside JPEG 2000, JPEG-LS near-lossless and JPEG XL, on unseen series.

    python benchmarks/fidelity.py ../shared/data --group ct --leave-out ct_lidc_chest --leave-out sts001_flat_mixed \\
        --train ct-2d --train ct-2d,levels=4,codebook_size=256 --minutes 15 --out ../shared/fidelity-ct
    python benchmarks/fidelity.py ../shared/data --group ct --leave-out ct_lidc_chest --model WS/models/ID

Each model gives one point per prefix of its levels (of corrections: per scale). Our bytes: the zero-order entropy of
the whole series' codes, level by level, plus 2 %. The codecs' bytes: bare codestreams of the slices compared, their
common main header counted once (image_codecs.py). PSNR and SSIM of both on the same slices: all of a series, or evenly
spread ones (`--slices`).
Models given by --model must not have been trained on what is left out; nothing here can know that.
Prints a table on stderr and one JSON line on stdout; --out keeps fidelity.json, fidelity.md and fidelity.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from configs import config_of
from corrected import corrected
from held_out import DEFAULT_LEFT, Split, opened
from image_codecs import LEAST_SIDE, Codec, Point, at_rate, curves
from scores import Scorer, machine, mean, spread, table

from archive.settings import TrainSettings
from model import bundle
from model.decode import decode_codes
from model.encode import encode_volume
from model.fidelity import peak_of
from model.metrics import entropy, histogram
from model.source import Source, as_source, channel_slab
from model.train import train
from model.vqvae import VQVAE

RATES = (0.03, 0.05, 0.08, 0.125, 0.156, 0.25, 0.5, 1.0)
ON_DISK = 1.02  # what an entropy coder costs beyond the entropy
OURS = "voxbook"


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--group", default="ct", choices=[*DEFAULT_LEFT])
    parser.add_argument("--leave-out", action="append", default=[], metavar="FOLDER[/PATIENTS]")
    parser.add_argument("--model", action="append", default=[], type=Path, help="a bundle: models/<model id>")
    parser.add_argument("--train", action="append", default=[], metavar="PRESET[,KEY=VALUE…]")
    parser.add_argument("--correct", action="append", default=[], type=float, metavar="STEP",
                        help="every model also with corrections of this step: more rates for one training")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=15.0, help="of each training")
    parser.add_argument("--slices", type=int, default=16, help="compared per series; 0: all")
    parser.add_argument("--series", type=int, help="compared at most, evenly spread; none: all that are left out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for fidelity.json, fidelity.md and fidelity.png")
    parser.add_argument("--workspace", type=Path, help="where the data stay ingested; none: a temporary folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with opened(arguments.data, arguments.group, arguments.leave_out, arguments.workspace) as split:
        models = [bundle.load(folder) for folder in arguments.model]
        if not models:
            wanted = arguments.train or [""]
            models = [trained(split, text, arguments.minutes, arguments.threads) for text in wanted]
        models += [corrected(model, step, split) for model in models for step in arguments.correct]
        found = compare(split, models, arguments.slices or None, arguments.series)
    text = report(found)
    sys.stderr.write(text + "\n")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "fidelity.json").write_text(json.dumps(found, indent=1))
        (arguments.out / "fidelity.md").write_text(text + "\n")
        draw(found, arguments.out / "fidelity.png")
    print(json.dumps(found))


def trained(split: Split, text: str, minutes: float, threads: int) -> VQVAE:
    """A model of `preset,key=value…` trained on what is not left out, as `voxbook train` would."""
    settings = TrainSettings(threads=threads, holdout=0.0)
    config = config_of(split, text, settings)
    with TemporaryDirectory() as folder:
        result = train(split.learn, split.patients, config, settings, Path(folder), 60.0 * minutes)
        return bundle.load(result.folder)


def compare(
    split: Split,
    models: Sequence[VQVAE],
    slices: int | None,
    series: int | None = None,
    peers: Sequence[Codec] = (),
) -> dict[str, Any]:
    """Every unseen series through every model and codec; figures ready for JSON."""
    names = list(split.unseen)
    chosen = [names[at] for at in spread(len(names), series)]
    found = [one_series(split.names[name], as_source(split.unseen[name]), models, slices, peers)
             for name in chosen]  # fmt: skip
    return {
        "benchmark": "fidelity",
        **machine("imagecodecs", "pylibjpeg-openjpeg", "pyjpegls", "scikit-image"),
        "group": split.group,
        "learned_from": sorted({split.names[name] for name in split.learn}),
        "models": [{"preset": model.config.preset, "levels": model.config.code_levels,
                    "correction_step": model.config.correction_step if model.config.corrections else None,
                    "codebook_size": model.config.codebook_size, "downsample": model.config.downsample,
                    "id": model.model_id} for model in models],
        "slices_per_series": slices or "all",
        "our_bytes": "zero-order entropy of the whole series' codes, by level, plus 2 %",
        "their_bytes": "bare codestreams of the slices compared, their common start counted once",
        "series": found,
        "at_our_points": at_our_points(found),
        "at_rates": at_rates(found),
    }  # fmt: skip


def one_series(
    name: str, source: Source, models: Sequence[VQVAE], slices: int | None, peers: Sequence[Codec]
) -> dict[str, Any]:
    """Our points and the codecs' curves of one series; no curves where its pictures are too small for codecs."""
    picks = spread(source.slices, slices)
    pictures = [channel_slab(source, at, at + 1)[0] for at in picks]
    slopes = source.attributes["slope"]
    step = abs(slopes[0]) if len(slopes) == 1 and source.dtype.kind in "iu" else None
    points = [{"model": number, **point} for number, model in enumerate(models)
              for point in our_points(model, source, pictures, picks)]  # fmt: skip
    small = min(source.shape[-2:]) < LEAST_SIDE
    theirs = {} if small else curves(pictures, peak_of(source), step, peers)
    return {
        "series": name,
        "shape": list(source.shape),
        "slices": len(picks),
        OURS: points,
        "codecs": {codec: [[point.as_dict() for point in way] for way in ways] for codec, ways in theirs.items()},
    }


def our_points(model: VQVAE, source: Source, pictures: Sequence[Any], picks: Sequence[int]) -> list[dict[str, Any]]:
    """Bits, PSNR and SSIM of every prefix of a model's levels."""
    codes = encode_volume(model, source)
    voxels = source.slices * source.shape[-1] * source.shape[-2]
    counts = histogram(codes.array, codes.codebook_size)
    found, bits = [], 0.0
    for level, level_counts in enumerate(counts):
        bits += ON_DISK * entropy(level_counts) * int(level_counts.sum()) / voxels
        if level + 1 not in model.config.stops:
            continue
        decoded = as_source(decode_codes(model, codes, level + 1))
        scorer = Scorer(peak_of(source))
        for at, picture in zip(picks, pictures, strict=True):
            scorer.add(picture, channel_slab(decoded, at, at + 1)[0])
        score = scorer.score()
        found.append({"levels": level + 1, **Point(bits, score.psnr, score.ssim, level + 1).as_dict()})
    return found


def at_our_points(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """At the bytes of each of our points: what the codecs reach, the mean over series of how far ours is ahead, and
    the worst series. A codec that cannot go so low is left out of its mean; `series` counts those it could."""
    rows = []
    for point in found[0][OURS] if found else []:
        key = point["model"], point["levels"]
        here = [(one, mine) for one in found for mine in one[OURS] if (mine["model"], mine["levels"]) == key]
        row: dict[str, Any] = {"model": key[0], "levels": key[1]}
        row |= {figure: mean([mine[figure] for _, mine in here]) for figure in ("bits", "psnr", "ssim")}
        for codec in sorted({name for one, _ in here for name in one["codecs"]}):
            for figure in ("psnr", "ssim"):
                ahead = [_ahead(one, mine, codec, figure) for one, mine in here]
                there = [value for value in ahead if value is not None]
                row[f"{codec}: {figure} ahead"] = mean(there)
                row[f"{codec}: {figure} worst"] = min(there, default=None)
                row[f"{codec}: series"] = len(there)
        rows.append(row)
    return rows


def at_rates(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the series at fixed rates; empty where a contestant does not reach that low on every series, or, for
    ours, where no model's codes take so much."""
    rows = []
    contestants = [OURS, *sorted({codec for one in found for codec in one["codecs"]})]
    for bits in RATES:
        row: dict[str, Any] = {"bits": bits}
        for name in contestants:
            for figure in ("psnr", "ssim"):
                values = [_figure(one, name, bits, figure) for one in found if one["codecs"]]
                row[f"{name}: {figure}"] = mean(values) if values and None not in values else None
        rows.append(row)
    return rows


def _ahead(one: dict[str, Any], mine: dict[str, Any], codec: str, figure: str) -> float | None:
    theirs = _figure(one, codec, mine["bits"], figure)
    return None if theirs is None or mine[figure] is None else mine[figure] - theirs


def _figure(one: dict[str, Any], name: str, bits: float, figure: str) -> float | None:
    if name == OURS:
        # Each model is a curve of its own: between two models there is nothing that anybody could have.
        numbers = sorted({point["model"] for point in one[OURS]})
        ways = [sorted((_point(point) for point in one[OURS] if point["model"] == number), key=lambda p: p.bits)
                for number in numbers]  # fmt: skip
        highest = max((way[-1].bits for way in ways), default=0.0)
        return at_rate(ways, bits, figure) if bits <= highest else None
    ways = [[_point(point) for point in way] for way in one["codecs"].get(name, [])]
    return at_rate(ways, bits, figure)


def _point(data: dict[str, Any]) -> Point:
    return Point(data["bits"], data["psnr"], data["ssim"], data["setting"])


def report(found: dict[str, Any]) -> str:
    """Markdown: at our points, at fixed rates, and each series."""
    ours = [{**row, "model": _named(found, row["model"])} for row in found["at_our_points"]]
    parts = [table(rows, list(rows[0])) for rows in (ours, found["at_rates"]) if rows]
    each = [{"series": one["series"], "slices": one["slices"], **point, "model": _named(found, point["model"]),
             **{f"{codec}: {figure}": _figure(one, codec, point["bits"], figure)
                for codec in one["codecs"] for figure in ("psnr", "ssim")}}
            for one in found["series"] for point in one[OURS]]  # fmt: skip
    if each:
        parts.append(table(each, [column for column in each[0] if column != "setting"]))
    return "\n\n".join(parts)


def _named(found: dict[str, Any], number: int) -> str:
    model = found["models"][number]
    step = model["correction_step"]
    return model["preset"] if step is None else f"{model['preset']}, step {step:g}"


def draw(found: dict[str, Any], path: Path) -> None:
    """PSNR and SSIM against bits per voxel: a row of panels per series, six series at most."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [one for one in found["series"] if one["codecs"]][:6]
    if not shown:
        return
    figure, axes = pyplot.subplots(
        len(shown), 2, figsize=(11, 0.8 + 3.4 * len(shown)), squeeze=False, layout="constrained"
    )
    for row, one in zip(axes, shown, strict=True):
        for panel, measure in zip(row, ("psnr", "ssim"), strict=True):
            for number, codec in enumerate(sorted(one["codecs"])):
                rates = [bits / 100 for bits in range(2, 121)]
                values = [_figure(one, codec, bits, measure) for bits in rates]
                panel.plot(rates, [float("nan") if v is None else v for v in values], color=f"C{number}", label=codec)
            for model in sorted({point["model"] for point in one[OURS]}):
                mine = [point for point in one[OURS] if point["model"] == model and point[measure] is not None]
                panel.plot([p["bits"] for p in mine], [p[measure] for p in mine], ".-",
                           color=f"C{model + 2}" if model else "k", label=f"{OURS}, {_named(found, model)}")  # fmt: skip
            panel.set(xscale="log", xlabel="bits per voxel", ylabel=measure.upper(), title=one["series"])
            panel.grid(alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
