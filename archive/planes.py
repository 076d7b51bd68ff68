"""How anatomical planes lie in an array [z, y, x]."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from archive.geometry import Geometry

PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Plane:
    """How one anatomical plane lies in an array [z, y, x].

    axis: the array axis that the slider walks along; rows, columns: those that make up the picture; flip_rows,
    flip_columns: so that L (patient's left) is on the right, P below, and S on top, as radiologists look at them.
    """

    axis: int
    rows: int
    columns: int
    flip_rows: bool
    flip_columns: bool

    def lay(self, block: np.ndarray) -> np.ndarray:
        """A block [z, y, x, ...] of length 1 along `axis` as a picture [rows, columns, ...]."""
        picture = np.moveaxis(block, (self.rows, self.columns, self.axis), (0, 1, 2))[:, :, 0]
        return picture[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


def planes_of(geometry: Geometry) -> dict[str, Plane]:
    """The three planes by the array axes that lie nearest to L, P and S; oblique grids are shown along their own axes.

    Left out: planes that are one voxel high or wide (of a single slice, and of pictures).
    """
    directions = geometry.matrix[:3, :3] / np.asarray(geometry.spacing_mm)  # rows L, P, S; columns z, y, x
    left, back, up = max(
        itertools.permutations(range(3)), key=lambda axes: sum(abs(directions[w, a]) for w, a in enumerate(axes))
    )
    to_left, to_back, to_up = (bool(directions[w, a] > 0) for w, a in enumerate((left, back, up)))
    found = dict(
        zip(
            PLANES,
            (
                Plane(up, back, left, not to_back, not to_left),
                Plane(back, up, left, to_up, not to_left),
                Plane(left, up, back, to_up, not to_back),
            ),
            strict=True,
        )
    )
    shape = geometry.shape
    thick = {name: plane for name, plane in found.items() if min(shape[plane.rows], shape[plane.columns]) > 1}
    return thick or {"axial": found["axial"]}
