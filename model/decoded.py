"""Encoded series as lazy arrays: decoded where they are looked at."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from archive.codes import Codes
from archive.errors import ConfigError
from archive.geometry import Geometry
from archive.volume import Volume, rescaled
from model.decode import Decoder, Region
from model.vqvae import VQVAE


class DecodedVolume:
    """A series decoded where it is looked at: `decoded[z0:z1, y0:y1, x0:x1]` gives stored values.

    Indexing takes integers and slices of step 1 along `axes`; the result equals the crop of the whole decode. It is a
    model.source.Source too. stored: StoredCodes, or Codes in memory. levels: as for decode_codes.
    """

    def __init__(self, model: VQVAE, stored: Any, levels: int | None = None) -> None:
        stored = _Held(stored) if isinstance(stored, Codes) else stored
        self._stored, self._levels = stored, levels
        about = _About(stored.attributes)

        def slab(t: int, z0: int, z1: int) -> np.ndarray:
            return stored.slab(z0, z1, levels=levels, t=t if len(stored.shape) == 5 else None)

        self._decoder = Decoder(model, about, slab)
        self._bounded = stored.bounded if levels is None else None
        self._pixels = self._bounded or self._decoder
        self.attributes: dict[str, Any] = about.source
        self.axes, self.shape, self.dtype = self._decoder.axes, self._decoder.shape, self._decoder.dtype
        self.ndim = len(self.shape)
        self.geometry = Geometry.from_dict(about.source["geometry"])
        self.units: str = about.source["units"]

    def __getitem__(self, key: Any) -> np.ndarray:
        wanted, dropped = _normalise(key, self.shape)
        region: Region = (wanted[-3], wanted[-2], wanted[-1])
        sizes = [part.stop - part.start for part in region]
        colours = [self.shape[self.axes.index("c")]] if "c" in self.axes else []
        times = range(wanted[0].start, wanted[0].stop) if self.axes.startswith("t") else range(1)
        out = np.empty((len(times), *colours, *sizes), self.dtype)
        if out.size:
            for row, t in enumerate(times):
                self._pixels.into(out[row], t, region)
        if colours:
            out = out[:, wanted[self.axes.index("c")]]
        if not self.axes.startswith("t"):
            out = out[0]
        return out[tuple(0 if axis in dropped else slice(None) for axis in range(self.ndim))]

    @property
    def slices(self) -> int:
        """Slices over all time points."""
        return self._decoder.frames * self.shape[-3]

    @property
    def codebooks(self) -> int:
        """Levels that are of codebooks; those after them are corrections."""
        return self._decoder.model.config.levels

    @property
    def together(self) -> int:
        """Neighbouring slices that cost as much to decode as one of them: so many make a full batch, or a window."""
        return 1 if self._bounded else self._decoder.together

    def slab(self, start: int, stop: int) -> np.ndarray:
        """Stored values of slices (t-major, z-minor) of one time point: [n, y, x], or [n, c, y, x] in colour."""
        t, z = divmod(start, self.shape[-3])
        _, y, x = self._decoder.everything
        colours = [self.shape[self.axes.index("c")]] if "c" in self.axes else []
        out = np.empty((*colours, stop - start, *self.shape[-2:]), self.dtype)
        self._pixels.into(out, t, (slice(z, z + stop - start), y, x))
        return np.moveaxis(out, 1, 0) if colours else out

    def slab_values(self, start: int, stop: int) -> np.ndarray:
        """The same in `units`, float32."""
        return rescaled(self.slab(start, stop), self.attributes["slope"], self.attributes["intercept"], start)

    @property
    def cuts(self) -> tuple[list[int], list[int], list[int]]:
        """Voxels along z, y, x, both ends included: a part between them costs as much to decode as any of its voxels."""
        _, rows, columns = self.shape[-3:]
        return (list(range(self.shape[-3] + 1)), [0, rows], [0, columns]) if self._bounded else self._decoder.cuts

    def read(self) -> Volume:
        """The whole series."""
        return Volume.from_attributes(self[...], self.attributes)

    def as_dask(self) -> Any:
        """A dask array, in chunks of a few slices."""
        import dask.array

        depth = max(1, 2**22 // math.prod(self.shape[-2:]))
        chunks = tuple(min(depth, size) if name == "z" else (1 if name == "t" else size)
                       for name, size in zip(self.axes, self.shape, strict=True))  # fmt: skip
        return dask.array.from_array(self, chunks=chunks, name=False, meta=np.empty((0,) * self.ndim, self.dtype))

    def as_xarray(self) -> Any:
        """A lazy xarray.DataArray of values in `units`, float32, which decodes what is computed of it.

        Coordinates z, y, x in mm along their own axes (exact ones of uneven slices), t in seconds where they are known.
        attrs: units, modality, flags, and affine_lps_mm, 4 x 4 of (z, y, x, 1) as in Geometry, for what they cannot say.
        """
        try:
            import xarray
        except ImportError:
            raise ConfigError("VERSIONS", "xarray is not installed", hint="pip install xarray") from None
        about, geometry = self.attributes, self.geometry
        coords = {
            name: np.arange(size) * mm
            for name, size, mm in zip("zyx", geometry.shape, geometry.spacing_mm, strict=True)
        }
        if geometry.positions_mm is not None:
            coords["z"] = np.array(geometry.positions_mm)
        times = [frame["time_s"] for frame in about["frames"] if "time_s" in frame]
        if "t" in self.axes and len(times) == self.shape[0]:
            coords["t"] = np.array(times)
        slope, intercept = (self._over_axes(about[key]) for key in ("slope", "intercept"))
        values = (self.as_dask() * slope + intercept).astype(np.float32)
        attrs = {key: about[key] for key in ("units", "modality", "flags")}
        attrs["affine_lps_mm"] = geometry.matrix.tolist()
        return xarray.DataArray(values, dims=tuple(self.axes), coords=coords, attrs=attrs)

    def _over_axes(self, numbers: list[float]) -> Any:
        """One number, or one per slice shaped to go with `axes`, float64."""
        if len(numbers) == 1:
            return float(numbers[0])
        sizes = dict(zip(self.axes, self.shape, strict=True))
        return np.asarray(numbers, np.float64).reshape([sizes[name] if name in "tz" else 1 for name in self.axes])


class OpenDecoded(Mapping[str, DecodedVolume]):
    """Every encoded series of a workspace, decoded where it is looked at."""

    def __init__(self, workspace: Any, device: str | None = None, levels: int | None = None) -> None:
        from archive.workspace import Workspace, open_codes

        self._workspace = workspace if isinstance(workspace, Workspace) else Workspace.open(workspace)
        self._codes = open_codes(workspace)
        self._device, self._levels = device, levels

    def __getitem__(self, series: str) -> DecodedVolume:
        from model.bundle import load

        stored = self._codes[series]
        name = stored.attributes["model"]
        model = load(self._workspace.models / name, model=name, device=self._device)
        return DecodedVolume(model, stored, self._levels)

    def __iter__(self) -> Iterator[str]:
        return iter(self._codes)

    def __len__(self) -> int:
        return len(self._codes)


def open_decoded(workspace: Any, device: str | None = None, levels: int | None = None) -> OpenDecoded:
    """Mapping of series to lazy decoded volumes of a workspace (its path, or the Workspace).

    device: cpu, cuda; None is the CPU. levels: decode only the first so many. Raises MismatchError WRONG_MODEL where
    a model's files are not those that its id names.
    """
    return OpenDecoded(workspace, device, levels)


class _Held:
    """Codes in memory, asked as stored ones are."""

    def __init__(self, codes: Codes) -> None:
        self.attributes = {**codes.attributes(), "source": codes.source}
        self.shape = codes.array.shape
        self.bounded = codes.bounded
        self._array = codes.array

    def slab(self, z0: int, z1: int, levels: int | None = None, t: int | None = None) -> np.ndarray:
        """As StoredCodes.slab, of one time point."""
        array = self._array[:levels] if t is None else self._array[:levels, t]
        return array[:, z0:z1]


class _About:
    """What a Decoder asks of codes, from the attributes of a stored version."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.model, self.levels, self.codebook_size = data["model"], data["levels"], data["codebook_size"]
        self.downsample, self.source, self.mapping = tuple(data["downsample"]), data["source"], data["mapping"]


def _normalise(key: Any, shape: tuple[int, ...]) -> tuple[list[slice], set[int]]:
    """A key of integers, slices and an ellipsis as one slice per axis, and the axes that an integer drops."""
    parts = list(key) if isinstance(key, tuple) else [key]
    at = next((place for place, part in enumerate(parts) if part is Ellipsis), None)
    if at is not None:
        parts[at : at + 1] = [slice(None)] * (len(shape) - len(parts) + 1)
    parts += [slice(None)] * (len(shape) - len(parts))
    if len(parts) != len(shape):
        raise IndexError(f"{len(parts)} indices for {len(shape)} axes")
    wanted, dropped = [], set()
    for axis, (part, size) in enumerate(zip(parts, shape, strict=True)):
        if isinstance(part, slice):
            start, stop, step = part.indices(size)
            if step != 1:
                raise IndexError("only slices of step 1 are read")
            wanted.append(slice(start, max(start, stop)))
        else:
            number = operator.index(part)  # raises TypeError for what is no whole number
            number += size * (number < 0)
            if not 0 <= number < size:
                raise IndexError(f"index {part} of an axis of {size}")
            wanted.append(slice(number, number + 1))
            dropped.add(axis)
    return wanted, dropped
