"""Where voxels lie in the patient: a shape and an exact affine, in DICOM's LPS millimetres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from archive.errors import InputError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# NIfTI counts i, j, k = x, y, z; our arrays count z, y, x.
XYZ_FROM_ZYX = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)


@dataclass(frozen=True)
class Geometry:
    """A voxel grid in patient space.

    shape: (z, y, x) voxels.
    affine: 4x4 rows of floats; `affine @ (z, y, x, 1)` is (L, P, S, 1) in mm of that voxel's centre. Shear (gantry
        tilt) is kept in it. DICOM: ImagePositionPatient (0020,0032), ImageOrientationPatient (0020,0037).
    positions_mm: exact slice positions along the slice axis, from the first slice, where the affine's regular ones
        differ from them by more than rounding; else None.
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, float, float, float], ...]
    positions_mm: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        matrix = np.asarray(self.affine, dtype=float)
        if len(self.shape) != 3 or min(self.shape) < 1 or matrix.shape != (4, 4):
            raise InputError("NO_GEOMETRY", "shape must be three positive sizes and the affine 4x4")
        if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-9:
            raise InputError("NO_GEOMETRY", "the affine is not finite or not invertible")
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "affine", tuple(tuple(float(value) for value in row) for row in matrix))

    @property
    def matrix(self) -> np.ndarray:
        """The affine as float64 [4, 4]."""
        return np.asarray(self.affine, dtype=float)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along z, y, x."""
        z, y, x = (float(value) for value in np.linalg.norm(self.matrix[:3, :3], axis=0))
        return z, y, x

    @property
    def tilt_degrees(self) -> float:
        """Angle between the slice axis and the slice normal; 0 for a rectangular grid."""
        z, y, x = self.matrix[:3, :3].T
        normal = np.cross(x, y)
        cosine = abs(normal @ z) / (np.linalg.norm(normal) * np.linalg.norm(z))
        return float(np.degrees(np.arccos(min(1.0, cosine))))

    def to_nifti(self) -> np.ndarray:
        """The affine of NIfTI, float64 [4, 4]: (i, j, k) = (x, y, z) voxels to RAS+ mm."""
        return LPS_TO_RAS @ self.matrix @ XYZ_FROM_ZYX

    @classmethod
    def from_nifti(cls, affine: np.ndarray, shape_xyz: tuple[int, int, int]) -> Geometry:
        """From a NIfTI affine (RAS+ mm) and a shape in (i, j, k) order."""
        x, y, z = shape_xyz
        return cls((z, y, x), tuple(map(tuple, LPS_TO_RAS @ np.asarray(affine, dtype=float) @ XYZ_FROM_ZYX)))

    @classmethod
    def pixels(cls, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Geometry:
        """An axial grid at the origin, for pictures, which know no patient space."""
        z, y, x = spacing_mm
        return cls(shape, ((0, 0, x, 0), (0, y, 0, 0), (z, 0, 0, 0), (0, 0, 0, 1)))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        positions = None if self.positions_mm is None else list(self.positions_mm)
        return {"shape": list(self.shape), "affine_lps": [list(row) for row in self.affine], "positions_mm": positions}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Geometry:
        """Read what `as_dict` wrote."""
        positions = data.get("positions_mm")
        return cls(tuple(data["shape"]), tuple(map(tuple, data["affine_lps"])), positions and tuple(positions))
