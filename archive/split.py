"""Which images of one series can share a grid: a tuple of values for each, never of ordinals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from archive.frames import Image

STORAGE = "1.2.840.10008.5.1.4.1.1."
SECONDARY_CAPTURE = {STORAGE + tail for tail in ("7", "7.1", "7.2", "7.3", "7.4")}
SPATIAL = ("CT", "MR", "PT")  # a single image of these belongs to a stack, so it must say where
ENHANCED_CT = STORAGE + "2.1"
# Defined terms of value 4 of ImageType for images that are computed from several energies (PS3.3 C.8.2.1.1.1).
MULTI_ENERGY = (
    *("VMI", "MAT_SPECIFIC", "MAT_REMOVED", "MAT_FRACTIONAL", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY", "MAT_MODIFIED"),
    "MAT_VALUE_BASED",
)
Cell = tuple[float, ...]  # a measured value, rounded
# What exporters round as they like: rounded to so many digits, neighbours within the tolerance are one.
MEASURED = {"orientation": (1e-3, 3), "spacing": (1e-4, 4), "echo": (5e-2, 2)}


def is_placed(header: dict[str, Any]) -> bool:
    """Whether an image has, or ought to have, its place in the patient; others are pictures with a time at most."""
    if header["position"] and header["orientation"]:
        return True
    alone = (header["frames"] or 1) == 1 and header["sop_class"] not in SECONDARY_CAPTURE
    return alone and header["modality"] in SPATIAL


def split_by_values(
    images: Sequence[Image], known: Callable[[], Iterable[tuple[str, ...]]] = tuple
) -> dict[tuple[str, ...], list[Image]]:
    """Images of one series by everything that cannot share a grid.

    An image without a place shares one only with other frames of its own object. known: the splits that this series had
    in earlier runs; asked only where the values alone leave a choice, so that slices which come later rename nothing.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Image]] = defaultdict(list)
    for image in images:
        groups[tuple(_stated(image.header).items())].append(image)
    parted: dict[tuple[str, ...], list[Image]] = {}
    for stated, alike in groups.items():
        for members, cells in _close(alike):
            name = _name(dict(stated), cells, known)
            for stack, inside in _stacks(members).items():
                parted[name + ((f"stack={stack}",) if stack else ())] = inside
    return parted


def _stated(header: dict[str, Any]) -> dict[str, str]:
    """What the images of one grid say alike to the letter, and empty places for what they measure."""
    modality = header["modality"]
    split = {
        "class": header["sop_class"],
        "modality": modality,
        "matrix": f"{header['rows']}x{header['columns']}",
        "bits": "/".join(str(header[key]) for key in ("allocated", "stored", "high", "signed")),
        "photometric": header["photometric"],
        "orientation": "",
        "spacing": "",
        "placed": "yes" if header["position"] else "no",
        "units": f"{header['units']}/{header['rescale_type']}/{header['suv_type']}",
        "type": _image_type(header),
        "echo": "",
        "kernel": header["kernel"] if modality == "CT" else "",
        # two tube voltages are two energies, not two times
        "kvp": f"{header['acquisition'].get('kvp', 0.0):g}" if modality == "CT" else "",
    }
    # Only where there is one: the keys of all other series stay what they were.
    energy = header.get("energy_kev")
    more = {
        "kev": "" if energy is None or modality != "CT" else f"{energy:g}",
        "part": header["part"],
        "object": "" if is_placed(header) else header["sop"],
    }
    return split | {name: value for name, value in more.items() if value}


def _close(images: list[Image]) -> Iterator[tuple[list[Image], dict[str, list[Cell]]]]:
    """Images whose measured values agree, and the cells of the rounding that these values lie in.

    Values agree where a chain of neighbouring cells joins them: an image that comes later may join two groups, but never
    part one.
    """
    cells: list[list[Cell]] = []
    chains: list[dict[Cell, Cell]] = []
    for name, (tolerance, digits) in MEASURED.items():
        values = [_measured(image.header, name) for image in images]
        # + 0.0 makes -0.0 read as 0.0
        rounded = {value: tuple(round(number, digits) + 0.0 for number in value) for value in set(values)}
        cells.append([rounded[value] for value in values])
        chains.append(_chained(set(rounded.values()), tolerance * (1 + 1e-6)))
    groups: dict[tuple[Cell, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(zip(*cells, strict=True)):
        groups[tuple(chain[cell] for chain, cell in zip(chains, row, strict=True))].append(index)
    for inside in groups.values():
        found = {name: sorted({column[i] for i in inside}) for name, column in zip(MEASURED, cells, strict=True)}
        yield [images[index] for index in inside], found


def _measured(header: dict[str, Any], name: str) -> Cell:
    if name == "echo":
        return () if header["modality"] != "MR" or header["echo_time"] is None else (header["echo_time"],)
    return tuple(header[name] or ())


def _chained(cells: set[Cell], tolerance: float) -> dict[Cell, Cell]:
    """For each cell the one that stands for its chain of neighbours."""
    leader = {cell: cell for cell in cells}

    def find(cell: Cell) -> Cell:
        while leader[cell] != cell:
            cell = leader[cell]
        return cell

    some = [cell for cell in cells if cell]
    # Swept along the component that differs most: a window along one that never does would hold every cell.
    axis = max(range(len(some[0])) if some else (0,), key=lambda at: len({cell[at] for cell in some}))
    window: list[Cell] = []
    for cell in sorted(some, key=lambda cell: (cell[axis], cell)):
        window = [other for other in window if cell[axis] - other[axis] <= tolerance]
        for other in window:
            if all(abs(a - b) <= tolerance for a, b in zip(cell, other, strict=True)):
                leader[find(cell)] = find(other)
        window.append(cell)
    return {cell: find(cell) for cell in leader}


def _name(
    stated: dict[str, str], cells: dict[str, list[Cell]], known: Callable[[], Iterable[tuple[str, ...]]]
) -> tuple[str, ...]:
    """The split of one group: where its values lie in several cells, the one it was known by, else the first."""
    texts = {name: [_text(cell, MEASURED[name][1]) for cell in found] for name, found in cells.items()}
    first = tuple(f"{name}={texts[name][0] if name in texts else value}" for name, value in stated.items())
    if all(len(found) == 1 for found in texts.values()):
        return first
    legal = [{f"{name}={text}" for text in texts.get(name, [value])} for name, value in stated.items()]
    for split in sorted(known()):
        split = tuple(part for part in split if not part.startswith("stack="))
        if len(split) == len(legal) and all(part in those for part, those in zip(split, legal, strict=True)):
            return split
    return first


def _text(cell: Cell, digits: int) -> str:
    return ",".join(f"{number:.{digits}f}" for number in cell)


def _stacks(members: list[Image]) -> dict[str, list[Image]]:
    """Images by their StackID (0020,9056) where stacks lie in different places; some number times by it."""
    stacks: dict[str, list[Image]] = defaultdict(list)
    for image in members:
        stacks[image.header["stack"]].append(image)
    places = {
        frozenset(tuple(round(value, 2) for value in image.header["position"] or ()) for image in inside)
        for inside in stacks.values()
    }
    return dict(stacks) if len(places) > 1 else {"": members}


def _image_type(header: dict[str, Any]) -> str:
    """The part of ImageType (0008,0008) that tells images of other meaning apart, not how they came about."""
    parts = header["image_type"].upper().split("\\")
    if header["modality"] == "MR":
        return "\\".join([*parts[2:], header["component"].upper()])
    if header["sop_class"] == ENHANCED_CT:
        return "\\".join(parts[2:])
    if "LOCALIZER" in parts:
        return "LOCALIZER"
    return next((part for part in parts[3:] if part in MULTI_ENERGY), "") if header["modality"] == "CT" else ""
