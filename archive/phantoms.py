"""Synthetic anatomy with known geometry: CT head, chest and abdomen, MR brain, and whole-body PET, from a seed.

For demos and tests only: the shapes are ellipsoids, tubes and smooth random fields, with noise like a scanner's. They
are nobody's anatomy.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from archive.canvas import Canvas, Triple

UNITS_OF = {
    "ct-head": "HU",
    "ct-chest": "HU",
    "ct-abdomen": "HU",
    "mr-t1": "a.u.",
    "mr-t2": "a.u.",
    "pet": "Bq/ml",
}
KINDS = tuple(UNITS_OF)

# What each tissue of the head looks like: HU, and arbitrary units of a T1- and a T2-weighted MR.
HEAD_TISSUES = {
    "ct-head": {"air": -1000, "scalp": 20, "bone": 1150, "diploe": 620, "csf": 8, "grey": 39, "white": 28, "lens": 70},
    "mr-t1": {"air": 0, "scalp": 760, "bone": 45, "diploe": 210, "csf": 150, "grey": 430, "white": 620, "lens": 240},
    "mr-t2": {"air": 0, "scalp": 420, "bone": 30, "diploe": 130, "csf": 980, "grey": 470, "white": 330, "lens": 160},
}
HEAD_LESION = {"ct-head": 68, "mr-t1": 280, "mr-t2": 860}


def phantom(
    kind: str,
    shape: tuple[int, int, int],
    spacing_mm: Triple,
    seed: int,
    *,
    repeat: int = 0,
    enhancement: float = 0.0,
) -> np.ndarray:
    """Draw a phantom: float32 [z, y, x] in HU, a.u. or Bq/ml; z points up, y to the back, x to the patient's left.

    The anatomy (a 'patient') follows from the seed and the kind; it lies around the grid's centre in true millimetres,
    so that another spacing shows the same patient. `repeat` draws other noise over the same anatomy; `enhancement`
    from 0 to 1 is contrast medium in vessels and lesions. Raises ValueError for a kind that is not in KINDS.
    """
    if kind not in UNITS_OF:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}")
    family = "head" if kind in HEAD_TISSUES else kind
    anatomy = np.random.default_rng([seed, zlib.crc32(family.encode())])
    noise = np.random.default_rng([seed, zlib.crc32(kind.encode()), repeat, 1])
    canvas = Canvas(shape, spacing_mm, anatomy)
    _PAINTERS[family](canvas, kind, enhancement)
    return _FINISHERS[kind.partition("-")[0]](canvas, kind, noise)


def _head(canvas: Canvas, kind: str, enhancement: float) -> None:
    tissue, rng, size = HEAD_TISSUES[kind], canvas.rng, canvas.size
    canvas.values += np.float32(tissue["air"])
    head = np.array([108.0, 96.0, 76.0]) * size
    if kind == "ct-head":  # head rest: a thin carbon shell behind the head
        for scale, hu in ((1.0, -160.0), (0.955, -930.0)):
            canvas.ellipsoid((0, 14, 0), (400, head[1] * 1.17 * scale, head[2] * 1.5 * scale), hu)
        canvas.values[:, canvas.grids[1] < head[1] * 0.45] = tissue["air"]
    canvas.ellipsoid((-8, 0, 0), tuple(head), tissue["scalp"], bend=0.008)
    canvas.ellipsoid((-8, 0, 0), tuple(head - 6), tissue["bone"], bend=0.008)
    canvas.ellipsoid((-8, 0, 0), tuple(head - 8.2), tissue["diploe"], bend=0.008)
    canvas.ellipsoid((-8, 0, 0), tuple(head - 10.5), tissue["bone"], bend=0.008)
    brain = head - 13
    canvas.ellipsoid((-8, 0, 0), tuple(brain), tissue["csf"], bend=0.008)
    # gyri: sulci run where a smooth random field crosses zero, with a ribbon of grey matter along them
    folds = np.abs(canvas.field(11.0))
    sulci = np.clip(1.3 - folds / np.float32(0.16), 0, 1)
    ribbon = np.clip(1.6 - folds / np.float32(0.5), 0, 1)
    cortex = tissue["grey"] + sulci * np.float32(tissue["csf"] - tissue["grey"])
    matter = tissue["white"] + ribbon * np.float32(tissue["grey"] - tissue["white"])
    canvas.ellipsoid((-8, 0, 0), tuple(brain - 2), cortex, bend=0.012)
    canvas.ellipsoid((-8, 0, 0), tuple(brain - 7), matter + 0.6 * sulci * (cortex - matter), bend=0.02)
    canvas.ellipsoid((-8, 0, 0), tuple(brain - 20), matter, bend=0.05)
    canvas.ellipsoid((-8, 0, 0), tuple(brain - 27), tissue["white"], bend=0.06)
    _deep_brain(canvas, tissue)
    canvas.ellipsoid((18, 0, 0), (60, 0.87 * brain[1], 0.9), tissue["csf"] + 0.4 * (tissue["grey"] - tissue["csf"]))
    for side in (-1, 1):
        canvas.ellipsoid((-46, -72 * size[1], side * 31 * size[2]), (13, 13, 13), tissue["csf"])
        canvas.ellipsoid((-46, -82 * size[1], side * 31 * size[2]), (4, 2.5, 4), tissue["lens"])
        canvas.ellipsoid((-60, 14, side * 55 * size[2]), (14, 16, 9), tissue["bone"], bend=0.05)  # petrous bone
        canvas.ellipsoid((-60, 18, side * 58 * size[2]), (8, 6, 5), tissue["air"], bend=0.1)  # mastoid cells
    canvas.ellipsoid((-62, -66 * size[1], 0), (20, 18, 13), tissue["air"], bend=0.06)  # sinuses
    canvas.ellipsoid((-62, -62 * size[1], 0), (20, 16, 1.2), tissue["bone"])
    if rng.random() < 0.6:
        spot = (rng.uniform(-10, 35), rng.uniform(-40, 40), rng.choice([-1, 1]) * rng.uniform(22, 40))
        radius = rng.uniform(6, 13)
        core = canvas.ellipsoid(spot, (radius,) * 3, None, bend=0.12)
        if core is not None:
            inside, box = core
            bright = HEAD_LESION[kind] + enhancement * 0.8 * abs(tissue["white"])
            canvas.fill(inside, np.float32(bright), box)
    for _ in range(4):  # vessels, seen with contrast medium
        start = (rng.uniform(-40, 0), rng.uniform(-30, 30), rng.uniform(-12, 12))
        value = tissue["grey"] + enhancement * (1.4 * abs(tissue["white"]) + 60)
        canvas.tree(start, (0.7, rng.normal(0, 0.4), rng.normal(0, 0.4)), 24, 1.7, value, 2)


def _deep_brain(canvas: Canvas, tissue: dict[str, int]) -> None:
    wide = canvas.rng.uniform(0.75, 1.5)  # ventricles widen with age
    for side in (-1, 1):
        canvas.ellipsoid((2, -4, side * 24), (16, 19, 9), tissue["grey"], angle=side * 20, bend=0.04)  # basal ganglia
        canvas.ellipsoid((2, 14, side * 11), (12, 13, 8), tissue["grey"], bend=0.03)  # thalamus
        canvas.ellipsoid((18, -16, side * 9 * wide**0.5), (13, 22, 5.5 * wide), tissue["csf"], angle=side * 16)
        canvas.ellipsoid((16, 20, side * 16 * wide**0.5), (11, 21, 5.5 * wide), tissue["csf"], angle=-side * 24)
    canvas.ellipsoid((-2, 4, 0), (14, 14, 2.2 * wide), tissue["csf"])
    canvas.ellipsoid((-50, 42, 0), (22, 26, 42), tissue["grey"], bend=0.05)  # cerebellum
    canvas.ellipsoid((-46, 10, 0), (34, 14, 15), tissue["white"], bend=0.02)  # brain stem
    canvas.ellipsoid((-46, 26, 0), (9, 5, 8 * wide), tissue["csf"])


def _torso(canvas: Canvas, radii: np.ndarray) -> None:
    """Table, skin, fat and the muscle wall; the body reaches through the whole field of view."""
    canvas.values += np.float32(-1000)
    y = canvas.grids[1]
    top = radii[1] + 9
    canvas.values[:, (y > top) & (y < top + 22)] = -890
    canvas.values[:, ((y > top) & (y < top + 3)) | ((y > top + 19) & (y < top + 22))] = -210
    canvas.values[:, :, np.abs(canvas.grids[2]) > 205] = -1000
    fat = canvas.rng.uniform(8, 24)
    canvas.ellipsoid((0, 0, 0), (5000, radii[1], radii[2]), 30, bend=0.012)
    canvas.ellipsoid((0, 0, 0), (5000, radii[1] - 2, radii[2] - 2), -102, bend=0.012)
    canvas.ellipsoid((0, 0, 0), (5000, radii[1] - fat, radii[2] - fat), 55, bend=0.02)


def _spine(canvas: Canvas, back: float) -> None:
    z = canvas.grids[0][:, None, None]
    # vertebra and disc alternate every 27 mm: the bone's density follows a clipped cosine along z
    bone = np.clip(2.6 * np.cos(2 * np.pi * z / 27) + 1.4, 0, 1).astype(np.float32)
    trabeculae = canvas.field(3.0)
    ones = np.ones_like(canvas.values)
    canvas.ellipsoid((0, back, 0), (5000, 17, 21), (90 + 420 * bone) * ones, bend=0.03)
    canvas.ellipsoid((0, back, 0), (5000, 14.5, 18.5), (85 + 125 * bone) * ones + 22 * trabeculae, bend=0.03)
    canvas.ellipsoid((0, back + 27, 0), (5000, 13, 17), 380, bend=0.06)
    canvas.ellipsoid((0, back + 26, 0), (5000, 8, 10), 18)
    canvas.ellipsoid((0, back + 48, 0), (5000, 14, 3.5), (60 + 330 * bone) * ones)
    for side in (-1, 1):
        canvas.ellipsoid((0, back + 20, side * 31), (5000, 5, 15), (58 + 260 * bone) * ones, angle=side * 25)


def _ribs(canvas: Canvas, radii: np.ndarray, depth_mm: float) -> None:
    z, y, x = (grid.reshape([-1 if axis == i else 1 for i in range(3)]) for axis, grid in enumerate(canvas.grids))
    radius = np.sqrt((y / (radii[1] - depth_mm)) ** 2 + (x / (radii[2] - depth_mm)) ** 2)
    layer = np.clip(1.3 - np.abs(radius - 1) * (radii[1] - depth_mm) / 3.6, 0, 1)
    phase = np.cos(2 * np.pi * (z + 0.45 * y) / 29)  # ribs slope down towards the front
    rib = layer * np.clip((phase - 0.35) * 4, 0, 1) * (np.abs(x) > 12)
    canvas.fill(rib.astype(np.float32), np.float32(430))


def _chest(canvas: Canvas, kind: str, enhancement: float) -> None:
    rng, size = canvas.rng, canvas.size
    radii = np.array([0, 118.0, 172.0]) * size
    _torso(canvas, radii)
    _ribs(canvas, radii, 30)
    blood = 42 + 260 * enhancement
    lung = -860 + 28 * canvas.field(16.0) + 24 * canvas.field(5.0)
    lung += np.float32(70) * canvas.grids[1][None, :, None] / np.float32(radii[1])  # denser where the lung lies
    for side in (-1, 1):
        deep, wide = radii[1] - 42, 66 * size[2]
        canvas.ellipsoid((0, -2, side * 78 * size[2]), (190 * size[0], deep, wide), lung, bend=0.03, angle=side * 6)
    canvas.ellipsoid((60, -6, 0), (170, 62, 26), -75, bend=0.06)  # mediastinal fat
    canvas.ellipsoid((-25, -34, 26), (66, 44, 56), 45, bend=0.03, angle=-28)
    canvas.ellipsoid((-25, -30, 36), (40, 22, 24), blood, bend=0.05, angle=-28)
    canvas.ellipsoid((-22, -44, -2), (42, 20, 24), blood - 0.3 * (blood - 42), bend=0.05)
    for side in (-1, 1):
        for _ in range(9):
            hilum = (rng.uniform(-75, 85), rng.uniform(-14, 22), side * 38)
            aim = np.array([rng.normal(0, 0.6), rng.normal(0, 0.7), side])
            canvas.tree(hilum, tuple(aim / np.linalg.norm(aim)), 30, 4.2, blood - 15, 4)
        for _ in range(3):  # bronchi: a wall with air in it
            start = np.array((rng.uniform(-50, 50), 8.0, side * 30))
            end = start + np.array((rng.normal(-14, 12), rng.normal(0, 12), side * 34))
            canvas.tube(tuple(start), tuple(end), 5.0, 20)
            canvas.tube(tuple(start), tuple(end), 3.4, -985)
    canvas.tube((160, 10, 0), (10, 16, 0), 10.0, 30)
    canvas.tube((160, 10, 0), (10, 16, 0), 8.2, -990)
    canvas.tube((-190, 44, 22), (95, 44, 22), 12.5, blood + 6)
    canvas.tube((95, 44, 22), (60, -18, -14), 13.5, blood + 6)
    if rng.random() < 0.5:
        radius = rng.uniform(4, 11)
        nodule = (rng.uniform(-30, 30), rng.uniform(-30, 30), rng.choice([-1, 1]) * rng.uniform(70, 95))
        canvas.ellipsoid(nodule, (radius,) * 3, 35 + 60 * enhancement, bend=0.15)
    _spine(canvas, radii[1] * 0.55)


def _abdomen(canvas: Canvas, kind: str, enhancement: float) -> None:
    rng, size = canvas.rng, canvas.size
    radii = np.array([0, 116.0, 165.0]) * size
    _torso(canvas, radii)
    _ribs(canvas, radii, 27)
    canvas.ellipsoid((0, -14, 0), (5000, radii[1] - 44, radii[2] - 40), -98 + 9 * canvas.field(7.0), bend=0.03)
    fine = canvas.field(4.0)
    for _ in range(34):  # bowel loops, some with gas above fluid
        place = (rng.uniform(-150, 60), rng.uniform(-62, 12), rng.uniform(-88, 88))
        radius = rng.uniform(9, 19)
        canvas.ellipsoid(place, (radius * 1.3, radius, radius), rng.uniform(20, 60), bend=0.08)
        canvas.ellipsoid(place, (radius * 1.1, radius - 3, radius - 3), 12 + 16 * fine, bend=0.08)
        if rng.random() < 0.35:
            above = (place[0], place[1] - radius * 0.3, place[2])
            canvas.ellipsoid(above, (radius, radius * 0.5, radius * 0.7), -930, bend=0.05)
    liver = 58 + 55 * enhancement + 5 * canvas.field(10.0) + 3 * fine
    canvas.ellipsoid((38, -4, -72 * size[2]), (92, 72, 66 * size[2]), liver, bend=0.05)
    canvas.ellipsoid((50, -40, -12), (50, 34, 60), liver, bend=0.06)
    canvas.ellipsoid((62, 38, 96 * size[2]), (48, 36, 25), 52 + 68 * enhancement + 4 * fine, bend=0.05, angle=-20)
    canvas.ellipsoid((70, -30, 62), (45, 34, 40), 30, bend=0.05)  # stomach
    canvas.ellipsoid((70, -40, 62), (38, 18, 30), -940, bend=0.05)
    for side in (-1, 1):
        kidney = (-16 - 10 * (side < 0), 46, side * 62)
        canvas.ellipsoid(kidney, (56, 25, 29), 38 + 150 * enhancement, bend=0.03, angle=side * 25)
        canvas.ellipsoid(kidney, (40, 14, 17), 30 + 90 * enhancement, bend=0.12, angle=side * 25)
        canvas.ellipsoid((kidney[0], 42, side * 54), (22, 8, 9), -70, bend=0.1)
        canvas.ellipsoid((0, 66, side * 42), (5000, 24, 19), 58, bend=0.03)  # psoas
    if rng.random() < 0.5:
        radius = rng.uniform(6, 15)
        canvas.ellipsoid((rng.uniform(10, 60), rng.uniform(-30, 20), -80), (radius,) * 3, 22, bend=0.08)
    for _ in range(3):
        canvas.tree((45, 5, -40), (0.2, rng.normal(0, 0.5), -1), 30, 4, 60 + 110 * enhancement, 3)
    canvas.tube((-250, 34, 9), (250, 34, 9), 10.5, 42 + 240 * enhancement)
    canvas.tube((-250, 30, -16), (250, 30, -16), 11.5, 40 + 100 * enhancement)
    _spine(canvas, radii[1] * 0.52)


def _whole_body(canvas: Canvas, kind: str, enhancement: float) -> None:
    """Uptake from head to pelvis; the body is stretched so that it fills whatever height the grid has."""
    rng, size = canvas.rng, canvas.size
    tall = max(1.0, float(canvas.grids[0][-1])) / 500
    edge = max(5.0, canvas.edge)  # a PET scanner's blur

    def organ(z: float, y: float, x: float, radii: Triple, uptake: float | np.ndarray, bend: float = 0.0) -> None:
        scaled = (radii[0] * tall, radii[1], radii[2])
        canvas.ellipsoid((z * tall, y, x), scaled, uptake, bend=bend, edge=edge)

    organ(-130, 0, 0, (420, 112 * size[1], 165 * size[2]), 2100 + 260 * canvas.field(22.0), 0.02)
    organ(390, -8, 0, (118, 98, 78), 4200)
    organ(405, -10, 0, (92, 84, 64), 26_000 * rng.uniform(0.8, 1.2) + 3500 * canvas.field(11.0), 0.03)
    organ(395, -10, 0, (30, 30, 7), 7000)
    for side in (-1, 1):
        organ(120, -4, side * 72, (125, 72, 52), 700, 0.03)
        organ(-120, 44, side * 62, (48, 26, 24), 9500, 0.03)
    organ(-10, 0, -68, (85, 68, 64), 5600 + 500 * canvas.field(14.0), 0.04)
    organ(75, -30, 30, (52, 40, 38), 17_000 * rng.uniform(0.3, 1.2))
    organ(75, -30, 30, (32, 24, 22), 3600)
    organ(-420, -24, 0, (42, 34, 40), 55_000 * rng.uniform(0.6, 1.3))
    organ(-30, 62, 0, (5000, 20, 20), 3300, 0.04)
    for _ in range(int(rng.integers(2, 7))):
        radius = rng.uniform(7, 18)
        organ(
            rng.uniform(-300, 250),
            rng.uniform(-50, 50),
            rng.uniform(-100, 100),
            (radius * 2, radius, radius),
            rng.uniform(9e3, 4e4),
        )


def _blurred(noise: np.ndarray) -> np.ndarray:
    """In-plane 1-2-1 smoothing: reconstructed pixels are never independent."""
    for axis in (-1, -2):
        noise = noise + np.float32(0.5) * (np.roll(noise, 1, axis) + np.roll(noise, -1, axis))
    return noise / np.float32(2.25)


def _finish_ct(canvas: Canvas, kind: str, noise: np.random.Generator) -> np.ndarray:
    thin = np.sqrt(5.0 / max(0.5, canvas.spacing[0]))  # fewer photons in a thinner slice
    level = {"ct-head": 3.5, "ct-chest": 11.0, "ct-abdomen": 9.0}[kind] * thin * canvas.rng.uniform(0.8, 1.25)
    grain = _blurred(noise.standard_normal(canvas.values.shape, dtype=np.float32)) * np.float32(level)
    grain *= np.where(canvas.values < -500, np.float32(0.6), np.float32(1.0))
    return np.clip(canvas.values + grain, -1024, 3071)


def _finish_mr(canvas: Canvas, kind: str, noise: np.random.Generator) -> np.ndarray:
    gain = canvas.rng.uniform(0.7, 1.4)
    shading = np.exp(np.float32(0.16) * canvas.field(110.0))  # uneven sensitivity of the coil
    signal = canvas.values * shading * np.float32(gain)
    real, imaginary = (noise.standard_normal(signal.shape, dtype=np.float32) * np.float32(11) for _ in range(2))
    return np.hypot(signal + real, imaginary)  # a magnitude image: Rician noise


def _finish_pet(canvas: Canvas, kind: str, noise: np.random.Generator) -> np.ndarray:
    # noise grows with the root of the activity, as counts do
    spread = np.sqrt(np.clip(canvas.values, 30, None)) * np.float32(11)
    grain = _blurred(_blurred(noise.standard_normal(canvas.values.shape, dtype=np.float32)))
    return np.clip(canvas.values + grain * spread, 0, None)


_PAINTERS: dict[str, Callable[[Canvas, str, float], None]] = {
    "head": _head,
    "ct-chest": _chest,
    "ct-abdomen": _abdomen,
    "pet": _whole_body,
}
_FINISHERS: dict[str, Callable[[Canvas, str, np.random.Generator], np.ndarray]] = {
    "ct": _finish_ct,
    "mr": _finish_mr,
    "pet": _finish_pet,
}
