"""A volume to paint synthetic anatomy on: ellipsoids, tubes, vessels and smooth random fields, in millimetres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Box:
    """A part of the grid: where it lies, and mm from a centre along each axis, shaped to be broadcast."""

    where: tuple[slice, slice, slice]
    z: np.ndarray
    y: np.ndarray
    x: np.ndarray


class Canvas:
    """A float32 volume to paint on, in mm around its centre; later shapes cover earlier ones with a soft edge."""

    def __init__(self, shape: tuple[int, int, int], spacing_mm: Triple, rng: np.random.Generator) -> None:
        self.rng = rng
        self.spacing = spacing_mm
        self.values = np.zeros(shape, np.float32)
        self.grids = [
            ((np.arange(size, dtype=np.float32) - (size - 1) / 2) * np.float32(spacing))
            for size, spacing in zip(shape, spacing_mm, strict=True)
        ]
        self.edge = 0.7 * max(spacing_mm[1], spacing_mm[2])
        self.size = rng.uniform(0.92, 1.08, 3)  # this patient's build along z, y, x
        self.bend = self.field(38.0)

    def field(self, scale_mm: float) -> np.ndarray:
        """A smooth random field, float32 [z, y, x], standard deviation about 1: cubic B-splines on a random lattice."""
        lattice = [max(1, int(np.ceil((grid[-1] - grid[0]) / scale_mm))) + 4 for grid in self.grids]
        # a generator of its own: the lattice's size must not move the draws that place this patient's organs
        rng = self.rng.spawn(1)[0]
        field = rng.standard_normal(lattice).astype(np.float32) * np.float32(2.6)
        for axis, grid in enumerate(self.grids):
            place = (grid - grid[0]) / np.float32(scale_mm) + 1
            distance = np.abs(place[:, None] - np.arange(lattice[axis], dtype=np.float32)[None, :])
            near = 2 / 3 - distance**2 + distance**3 / 2
            far = np.clip(2 - distance, 0, None) ** 3 / 6
            weights = np.where(distance < 1, near, far).astype(np.float32)
            field = np.moveaxis(np.tensordot(weights, field, axes=(1, axis)), 0, axis)
        return field

    def fill(self, inside: np.ndarray, value: float | np.floating | np.ndarray, box: Box | None = None) -> None:
        """Blend a value in where `inside` (0 to 1) says."""
        view = self.values if box is None else self.values[box.where]
        view += inside * (value - view)

    def box(self, centre: Triple, reach: Triple) -> Box | None:
        """The part of the grid within `reach` of a centre, or None where it lies outside the field of view."""
        slices, parts = [], []
        for grid, middle, extent in zip(self.grids, centre, reach, strict=True):
            low, high = np.searchsorted(grid, (middle - extent, middle + extent))
            if low >= high:
                return None
            slices.append(slice(int(low), int(high)))
            parts.append(grid[low:high] - np.float32(middle))
        z, y, x = parts
        return Box((slices[0], slices[1], slices[2]), z[:, None, None], y[None, :, None], x[None, None, :])

    def ellipsoid(
        self,
        centre: Triple,
        radii: Triple,
        value: float | np.ndarray | None,
        *,
        angle: float = 0.0,
        bend: float = 0.0,
        edge: float | None = None,
    ) -> tuple[np.ndarray, Box] | None:
        """Paint an ellipsoid (turned by `angle` degrees in the slice, its surface moved by `bend` of its radius).

        Returns how far inside each voxel of its box lies (0 to 1) and the box; `value` None paints nothing, and an
        array gives the value of every voxel of the volume.
        """
        widest = max(radii[1], radii[2]) if angle else 0.0
        sharpness = max(4.0, min(radii) / (self.edge if edge is None else edge))
        margin = 1 + 3 * bend + 0.5 / sharpness  # as far as the soft edge reaches
        reach = (radii[0] * margin, max(radii[1], widest) * margin, max(radii[2], widest) * margin)
        box = self.box(centre, reach)
        if box is None:
            return None
        y, x = box.y, box.x
        if angle:
            cosine, sine = np.float32(np.cos(np.radians(angle))), np.float32(np.sin(np.radians(angle)))
            y, x = y * cosine - x * sine, y * sine + x * cosine
        radius = np.sqrt((box.z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2)
        if bend:
            radius = radius + np.float32(bend) * self.bend[box.where]
        inside = np.clip((1 - radius) * np.float32(sharpness) + np.float32(0.5), 0, 1)
        if value is not None:
            self.fill(inside, value[box.where] if isinstance(value, np.ndarray) else np.float32(value), box)
        return inside, box

    def tube(self, start: Triple, end: Triple, radius: float, value: float) -> None:
        """Paint a round tube between two points."""
        one, two = np.asarray(start, np.float32), np.asarray(end, np.float32)
        middle, half = (one + two) / 2, np.abs(two - one) / 2 + radius + self.edge
        box = self.box(tuple(middle), tuple(half))
        if box is None:
            return
        axis = two - one
        length = float(axis @ axis) or 1.0
        z, y, x = box.z + middle[0] - one[0], box.y + middle[1] - one[1], box.x + middle[2] - one[2]
        along = np.clip((z * axis[0] + y * axis[1] + x * axis[2]) / np.float32(length), 0, 1)
        distance = np.sqrt((z - along * axis[0]) ** 2 + (y - along * axis[1]) ** 2 + (x - along * axis[2]) ** 2)
        inside = np.clip((radius - distance) / np.float32(self.edge) + np.float32(0.5), 0, 1)
        self.fill(inside, np.float32(value), box)

    def tree(self, root: Triple, direction: Triple, length: float, radius: float, value: float, depth: int) -> None:
        """Paint a branching vessel."""
        end = tuple(np.asarray(root) + np.asarray(direction) * length)
        self.tube(root, end, radius, value)
        if depth == 0:
            return
        for _ in range(2):
            turned = np.asarray(direction) + self.rng.normal(0, 0.55, 3)
            turned /= np.linalg.norm(turned)
            self.tree(end, tuple(turned), length * self.rng.uniform(0.6, 0.9), radius * 0.72, value, depth - 1)
