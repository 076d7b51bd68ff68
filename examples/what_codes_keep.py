"""What codes keep and lose, in four pictures: a phantom that the model never saw, and one that asks how small and faint.

python examples/what_codes_keep.py ws docs/pictures

Draws its own phantoms; needs a workspace with a model of group ct (`voxbook demo ws`). Writes keeps.png, loses.png,
bits.png and bounds.png, and prints the figures as one JSON object.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from archive import Geometry, Volume
from archive.bounded import decode_slice, encode_slice
from archive.jpeg2000 import round_trip
from archive.phantoms import phantom
from archive.workspace import Workspace
from model import decode_codes, encode_volume, load
from model.metrics import histogram, psnr, ssim

SHAPE, SPACING_MM, SEED = (12, 192, 192), (5.0, 2.0, 2.0), 4711  # a seed that the sample archive does not use
SOFT_TISSUE, LUNG = (-160, 240), (-1250, 250)
DIAMETERS, CONTRASTS = (2, 4, 8, 14, 22), (400, 200, 100, 50, 25)  # voxels, HU
BOUNDS_HU = (100, 50, 20, 10, 4, 0)
NOTE = "Phantoms that voxbook draws itself: nobody's anatomy."


def main(root: Path, out: Path) -> dict[str, Any]:
    """Write the pictures; returns the figures that are in them, errors and contrasts in HU."""
    workspace = Workspace.open(root)
    current = workspace.catalog.current_model("ct")
    if current is None:
        sys.exit("this workspace has no model of group ct: voxbook train -w WS --group ct")
    model = load(workspace.models / current.model)
    out.mkdir(parents=True, exist_ok=True)

    chest = hu_volume(phantom("ct-chest", SHAPE, SPACING_MM, SEED))
    codes = encode_volume(model, chest)
    decoded = decode_codes(model, codes)
    z = SHAPE[0] // 2
    source, coded = (np.asarray(volume.voxels[z], np.float32) for volume in (chest, decoded))
    price = bits_of(codes.array, model.config.codebook_size)
    bits = float(price.sum()) / chest.voxels.size
    wavelet = jpeg2000(source, bits)

    asked = hu_volume(contrast_detail(np.random.default_rng(SEED)))
    answer = decode_codes(model, encode_volume(model, asked))
    figures = {
        "model": current.model[:12],
        "bits_per_voxel": bits,
        "ratio": 16 / bits,
        "psnr, ssim": fidelity(source, coded),
        "largest_hu": int(np.abs(decoded.voxels.astype(int) - chest.voxels).max()),
        "jpeg2000: psnr, ssim": fidelity(source, wavelet),
        "noise_hu": noise(asked.voxels, answer.voxels),
        "contrast_kept": contrast_kept(asked.voxels, answer.voxels),
        "bounds": [bounded(chest.voxels, bound) for bound in BOUNDS_HU],
    }
    keeps(out / "keeps.png", source, coded, wavelet)
    loses(out / "loses.png", asked.voxels[2], answer.voxels[2])
    where_bits_go(out / "bits.png", source, price[:, z].sum(0), model.config.downsample[-2:])
    bounds(
        out / "bounds.png", figures, [(rate, jpeg2000(source, rate)) for rate in (0.05, 0.1, 0.25, 0.5, 1, 2)], source
    )
    return figures


def hu_volume(values: np.ndarray) -> Volume:
    """A CT volume of whole HU on an axial grid. values: float [z, y, x]."""
    z, y, x = SPACING_MM
    affine = ((0.0, 0.0, x, 0.0), (0.0, y, 0.0, 0.0), (z, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    return Volume(
        voxels=np.rint(values).astype(np.int16),
        axes="zyx",
        geometry=Geometry(values.shape, affine),
        modality="CT",
        slope=(1.0,),
        intercept=(0.0,),
        units="HU",
    )


def contrast_detail(rng: np.random.Generator) -> np.ndarray:
    """A disc of water-like noise with brighter dots: a row for each contrast, a column for each diameter."""
    _, height, width = SHAPE
    y, x = np.mgrid[:height, :width]
    plane = np.where(np.hypot(y - height / 2, x - width / 2) < 92, 40.0, -1000.0)
    for row, contrast in enumerate(CONTRASTS):
        for column, diameter in enumerate(DIAMETERS):
            plane[np.hypot(*(a - b for a, b in zip((y, x), place(row, column), strict=True))) < diameter / 2] += (
                contrast
            )
    return plane + rng.normal(0, 8, (4, height, width))


def place(row: int, column: int) -> tuple[float, float]:
    """Centre of one dot, y and x in voxels."""
    return 46.5 + 24 * row, 46.5 + (0, 14, 32, 56, 88)[column]


def contrast_kept(source: np.ndarray, decoded: np.ndarray) -> list[list[float]]:
    """Share of each dot's contrast that is left, one row a contrast, one column a diameter; noise averaged over slices."""
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    found = []
    for row in range(len(CONTRASTS)):
        shares = []
        for column, diameter in enumerate(DIAMETERS):
            down, across = y - place(row, column)[0], x - place(row, column)[1]
            distance = np.hypot(down, across)
            inside = distance < max(1.0, 0.4 * diameter)
            beside = (distance > diameter / 2 + 2) & (distance < diameter / 2 + 4) & (abs(down) < 3)
            rise = [float(volume[:, inside].mean() - volume[:, beside].mean()) for volume in (source, decoded)]
            shares.append(round(rise[1] / rise[0], 2))
        found.append(shares)
    return found


def bits_of(array: np.ndarray, size: int) -> np.ndarray:
    """What each code costs by its level's zero-order entropy, float [level, z, y, x] in bits."""
    counts = histogram(array, size)
    price = -np.log2(np.maximum(counts, 1) / counts.sum(1, keepdims=True))
    return np.stack([each[codes] for each, codes in zip(price, array, strict=True)])


def jpeg2000(plane: np.ndarray, bits: float) -> np.ndarray:
    """One slice of HU after JPEG 2000 at so many bits per voxel (12-bit values, everything over 3,071 HU clipped)."""
    unsigned = np.clip(plane + 1024, 0, 4095).astype(np.uint16)
    back = round_trip(unsigned, bits * plane.size / 8 + 100, 12)  # its headers are not held against it
    return np.full_like(plane, np.nan) if back is None else back.astype(np.float32) - 1024


def fidelity(source: np.ndarray, other: np.ndarray) -> tuple[float, float | None]:
    """PSNR in dB and SSIM over [-1024, 3071] HU."""
    a, b = (np.clip(plane, -1024, 3071) for plane in (source, other))
    return round(psnr(float(np.mean((a - b) ** 2)), 4095), 2), ssim(a, b, 4095)


def noise(source: np.ndarray, decoded: np.ndarray) -> tuple[float, float]:
    """Standard deviation of what differs between neighbouring slices of the same phantom, before and after, in HU."""
    plain = (slice(None), slice(100, 140), slice(148, 164))  # no dot is near
    before, after = ((np.diff(volume[plain].astype(float), axis=0) / 2**0.5).std() for volume in (source, decoded))
    return round(float(before), 2), round(float(after), 2)


def bounded(voxels: np.ndarray, bound_hu: int) -> dict[str, float]:
    """Bits per voxel of the layer that bounds the error, and the largest error measured."""
    parts = [encode_slice(plane[None], bound_hu) for plane in voxels]
    back = np.concatenate(
        [decode_slice(part, (1, *plane.shape), plane.dtype) for part, plane in zip(parts, voxels, strict=True)]
    )
    error = np.abs(back.reshape(voxels.shape).astype(int) - voxels)
    rate = 8 * sum(map(len, parts)) / voxels.size
    return {"bound_hu": bound_hu, "bits_per_voxel": round(rate, 3), "largest_hu": int(error.max())}


def keeps(path: Path, source: np.ndarray, coded: np.ndarray, wavelet: np.ndarray) -> None:
    figure = Figure(figsize=(9.6, 5.2))
    columns = (
        ("source", source),
        ("codes", coded),
        ("JPEG 2000, same bytes", wavelet),
        ("codes - source", coded - source),
    )
    for row, (name, (low, high)) in enumerate((("soft tissue", SOFT_TISSUE), ("lung", LUNG))):
        for column, (title, plane) in enumerate(columns):
            axes = figure.add_subplot(2, 4, 4 * row + column + 1)
            limits = (low, high) if column < 3 else ((low - high) / 4, (high - low) / 4)
            axes.imshow(plane, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="nearest")
            if column == 3:
                axes.set_xlabel(f"black {limits[0]:.0f}, white {limits[1]:+.0f} HU", fontsize=7)
            bare(axes, title if row == 0 else "", name if column == 0 else "")
    save(figure, path)


def loses(path: Path, asked: np.ndarray, answer: np.ndarray) -> None:
    figure = Figure(figsize=(9.6, 5.2))
    for column, (title, plane) in enumerate((("source", asked), ("codes", answer))):
        axes = figure.add_subplot(1, 2, column + 1)
        axes.imshow(plane, cmap="gray", vmin=-60, vmax=260, interpolation="nearest")
        for row, contrast in enumerate(CONTRASTS):
            axes.text(19, place(row, 0)[0], f"+{contrast} HU", color="white", fontsize=6.5, va="center")
        for at, diameter in enumerate(DIAMETERS):
            axes.text(place(0, at)[1], 32, f"{diameter}", color="white", fontsize=7, ha="center")
        bare(axes, f"{title}: dots of 2 to 22 voxels across, +400 to +25 HU")
    save(figure, path)


def where_bits_go(path: Path, source: np.ndarray, cost: np.ndarray, cell: tuple[int, int]) -> None:
    figure = Figure(figsize=(9.6, 4.4))
    height, width = source.shape
    for column, title in enumerate(("source, cells of the code grid", "bits that each cell costs")):
        axes = figure.add_subplot(1, 2, column + 1)
        axes.imshow(source, cmap="gray", vmin=SOFT_TISSUE[0], vmax=SOFT_TISSUE[1], interpolation="nearest")
        if column == 0:
            axes.hlines(np.arange(0, height, cell[0]) - 0.5, -0.5, width - 0.5, colors="#4aa3df", linewidths=0.3)
            axes.vlines(np.arange(0, width, cell[1]) - 0.5, -0.5, height - 0.5, colors="#4aa3df", linewidths=0.3)
        else:
            grown = np.kron(cost, np.ones(cell))[:height, :width]
            shown = axes.imshow(grown, cmap="magma", vmin=0, alpha=0.85, interpolation="nearest")
            figure.colorbar(shown, ax=axes, fraction=0.046, label="bits")
        bare(axes, title)
    save(figure, path)


def bounds(path: Path, figures: dict[str, Any], rates: list[tuple[float, np.ndarray]], source: np.ndarray) -> None:
    figure = Figure(figsize=(7.2, 4.2))
    axes = figure.add_subplot()
    kept = [(rate, float(np.abs(plane - source).max())) for rate, plane in rates if np.isfinite(plane).all()]
    axes.plot(*zip(*kept, strict=True), "s--", color="#777", label="JPEG 2000", markersize=4)
    layer = [(item["bits_per_voxel"], item["largest_hu"]) for item in figures["bounds"]]
    axes.plot(*zip(*layer, strict=True), "o-", color="#1a6fb0", label="with gate.max_error")
    for item in figures["bounds"]:
        at = (item["bits_per_voxel"], item["largest_hu"])
        words = f"max_error = {item['bound_hu']}"
        axes.annotate(words, at, textcoords="offset points", xytext=(-6, -9), fontsize=7, ha="right")
    codes = (figures["bits_per_voxel"], figures["largest_hu"])
    axes.plot(*codes, "D", color="#c0392b", label=f"codes: {codes[0]:.3f} bits, largest error {codes[1]} HU")
    axes.set(xscale="log", yscale="symlog", xlabel="bits per voxel", ylabel="largest error, HU")
    axes.set(xlim=(0.03, 10), ylim=(-0.5, 5000))
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    save(figure, path)


def bare(axes: Any, title: str, label: str = "") -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8)
    axes.set_ylabel(label, fontsize=8)


def save(figure: Figure, path: Path) -> None:
    figure.text(0.01, 0.01, NOTE, fontsize=6, color="#555")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    picture.quantize(128, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
