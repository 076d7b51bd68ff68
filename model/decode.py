"""Codes back to volumes: whole, or any part of one, which is the same to the bit as the crop of the whole."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from archive.codes import Codes
from archive.errors import ConfigError, MismatchError, StoreError
from archive.geometry import Geometry
from archive.volume import Volume, rescaled
from model import intensity
from model.device import arithmetic
from model.source import unscaled
from model.tiling import Tile, batch_size, groups, tiles, windows
from model.vqvae import VQVAE

Region = tuple[slice, slice, slice]


def decode_codes(model: VQVAE, codes: Codes, levels: int | None = None) -> Volume:
    """The volume of codes, with the source's shape, dtype, geometry, units, slope and intercept.

    levels: use only the first so many, a coarser picture; None: all, or the layer that bounds the error where the codes
    have one (archive.bounded), which owes nothing to the network. Only the result is of the volume's size; floats are kept
    for one window at a time. Raises MismatchError WRONG_MODEL; StoreError DAMAGED for a code outside the codebook.
    """
    timed = codes.array.ndim == 5

    def slab(t: int, z0: int, z1: int) -> np.ndarray:
        array = codes.array[:levels, t] if timed else codes.array[:levels]
        return array[:, z0:z1]

    decoder = Decoder(model, codes, slab)
    voxels = np.empty(decoder.shape, decoder.dtype)
    pixels = codes.bounded if levels is None and codes.bounded is not None else decoder
    for t in range(decoder.frames):
        pixels.into(voxels[t] if decoder.axes.startswith("t") else voxels, t, decoder.everything)
    return Volume.from_attributes(voxels, codes.source)


@dataclass(frozen=True)
class Decoder:
    """Decodes windows of one series.

    about: a Codes, of which only what describes the source is used; slab(t, z0, z1): codes uint16 [L, z, y, x] of
    rows z0 to z1 of the code grid.
    """

    model: VQVAE = field(repr=False)
    about: Any
    slab: Callable[[int, int, int], np.ndarray] = field(repr=False)

    def __post_init__(self) -> None:
        config = self.model.config
        fits = config.codebook_size == self.about.codebook_size and config.downsample == tuple(self.about.downsample)
        named = not self.model.model_id or self.about.model == self.model.model_id
        if not fits or not named or self.about.levels > config.levels:
            raise MismatchError("WRONG_MODEL", "the codes were made by another model")

    @property
    def axes(self) -> str:
        """Of the source."""
        return self.about.source["axes"]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of the source."""
        return tuple(self.about.source["shape"])

    @cached_property
    def dtype(self) -> np.dtype:
        """Of the source's stored values."""
        return np.dtype(self.about.source["dtype"])

    @property
    def frames(self) -> int:
        """Time points."""
        return self.shape[0] if self.axes.startswith("t") else 1

    @property
    def everything(self) -> Region:
        """All voxels z y x."""
        z, y, x = (slice(0, size) for size in self.shape[-3:])
        return z, y, x

    @cached_property
    def mapping(self) -> intensity.Mapping:
        """The inverse of how the source was mapped."""
        return intensity.Mapping.from_dict(self.about.mapping)

    @property
    def together(self) -> int:
        """Neighbouring slices that cost as much to decode as one of them."""
        first = self._plan[0].outer[0]
        across = {(tile.spans[1].start, tile.spans[2].start) for tile in self._plan}
        deep = (first.stop - first.start) * self.about.downsample[0]
        return max(1, min(self.shape[-3], deep * max(1, self._batch // len(across))))

    @cached_property
    def cuts(self) -> tuple[list[int], list[int], list[int]]:
        """Voxels along z, y, x where windows meet, both ends included: what lies between them costs least to decode."""
        ends = [
            sorted({min(tile.inner[axis].stop * d, size) for tile in self._plan} | {0})
            for axis, (d, size) in enumerate(zip(self.about.downsample, self.shape[-3:], strict=True))
        ]
        deep, size = self.together, self.shape[-3]
        if self._batch == 1:
            return ends[0], ends[1], ends[2]
        return [*range(0, size, deep), size], [0, ends[1][-1]], [0, ends[2][-1]]

    @property
    def _batch(self) -> int:
        """Windows that go through the network at once."""
        shape = [
            (part.stop - part.start) * d for part, d in zip(self._plan[0].outer, self.about.downsample, strict=True)
        ]
        return batch_size(self.model.device.type, math.prod(shape))

    @cached_property
    def _plan(self) -> list[Tile]:
        cell = self.model.config.downsample
        grid = tuple(math.ceil(size / d) for size, d in zip(self.shape[-3:], cell, strict=True))
        return tiles((grid[0], grid[1], grid[2]), *windows(self.model.config.dims, cell, self.model.decoder_halo))

    def into(self, target: np.ndarray, t: int, region: Region) -> None:
        """Write stored values of one time point's region (voxels z y x) into [(c), z, y, x] of the region's size."""
        slope, intercept = self.about.source["slope"], self.about.source["intercept"]
        depth = self.shape[-3]
        for place, x in self.windows(t, region):
            values = self.mapping.to_values(x)  # [c, z, y, x]
            first = t * depth + place[0].start
            stored = np.moveaxis(unscaled(np.moveaxis(values, 1, 0), slope, intercept, first, self.dtype), 0, 1)
            z, y, column = (
                slice(part.start - whole.start, part.stop - whole.start)
                for part, whole in zip(place, region, strict=True)
            )
            target[..., z, y, column] = stored if "c" in self.axes else stored[0]

    def windows(self, t: int, region: Region) -> Iterator[tuple[Region, np.ndarray]]:
        """Parts of the region as (voxels z y x, float32 [c, z, y, x] in the model's range).

        A group of windows that the region touches is decoded as a whole decode would, so the bits are the same.
        """
        config = self.model.config
        cell = config.downsample
        shape = [part.stop - part.start for part in self._plan[0].outer]
        size = batch_size(self.model.device.type, math.prod(shape) * math.prod(cell))
        plan = list(groups(self._plan, size))
        depths = [group[-1].inner[0].stop * cell[0] for group in plan]  # never falling: z is slowest
        for group in plan[bisect.bisect_right(depths, region[0].start) :]:
            if group[0].inner[0].start * cell[0] >= region[0].stop:
                break
            touched = [_overlap(tile, cell, region) for tile in group]
            if not any(touched):
                continue
            pictures = self._run(group, t, size, shape)
            for tile, place, picture in zip(group, touched, pictures, strict=False):
                if place is None:
                    continue
                z, y, x = (
                    slice(part.start - o.start * d, part.stop - o.start * d)
                    for part, o, d in zip(place, tile.outer, cell, strict=True)
                )
                yield place, picture[:, z, y, x]

    def _run(self, group: list[Tile], t: int, size: int, shape: list[int]) -> np.ndarray:
        first, last = min(tile.outer[0].start for tile in group), max(tile.outer[0].stop for tile in group)
        rows = self.slab(t, first, last)
        if rows.size and int(rows.max()) >= self.about.codebook_size:
            raise StoreError("DAMAGED", "a code lies outside the codebook")
        batch = np.zeros((size, len(rows), *shape), np.int64)
        for place, tile in enumerate(group):
            z, y, x = tile.outer
            batch[place] = rows[:, z.start - first : z.stop - first, y, x]
        codes = torch.from_numpy(batch)
        codes = (codes[:, :, 0] if self.model.config.dims == 2 else codes).to(self.model.device)
        with arithmetic(self.model.device, "exact"):
            pictures = self.model.decode(codes).float().cpu().numpy()
        return pictures[:, :, None] if self.model.config.dims == 2 else pictures


def _overlap(tile: Tile, cell: tuple[int, int, int], region: Region) -> Region | None:
    """The voxels of the region that are the tile's own; None where there are none."""
    parts = [
        slice(max(own.start * d, want.start), min(own.stop * d, want.stop))
        for own, d, want in zip(tile.inner, cell, region, strict=True)
    ]
    return (parts[0], parts[1], parts[2]) if all(part.start < part.stop for part in parts) else None


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
        """An xarray.DataArray over `as_dask`, with z y x in mm along their own axes, and the source's attributes."""
        try:
            import xarray
        except ImportError:
            raise ConfigError("VERSIONS", "xarray is not installed", hint="pip install xarray") from None
        spacing = dict(zip("zyx", self.geometry.spacing_mm, strict=True))
        coords = {
            name: np.arange(size) * spacing[name]
            for name, size in zip(self.axes, self.shape, strict=True)
            if name in spacing
        }
        return xarray.DataArray(self.as_dask(), dims=tuple(self.axes), coords=coords, attrs={"units": self.units})


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
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
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
            number = int(part) + size * (int(part) < 0)
            if not 0 <= number < size:
                raise IndexError(f"index {part} of an axis of {size}")
            wanted.append(slice(number, number + 1))
            dropped.add(axis)
    return wanted, dropped
