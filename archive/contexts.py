"""The order in which the codes of a slab are coded, and which neighbours are known by then.

Slices one after the other; in a slice four passes over the 2 x 2 places of a cell of cells, so that every code of a
pass is coded at once and still sees codes around it: first the even rows and columns, which see only the slice
before, then the odd ones (their four diagonal neighbours are known), then the two mixed kinds.
"""

from __future__ import annotations

import numpy as np

Offset = tuple[int, int, int]

PASSES = ((0, 0), (1, 1), (0, 1), (1, 0))
_PLUS = [(0, -1), (0, 1), (-1, 0), (1, 0)]
_CROSS = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
_BEFORE: list[Offset] = [(-1, y, x) for y, x in [(0, 0), *_PLUS, *_CROSS]]
# Of each pass: (dz, dy, dx) of the neighbours that its network sees; as many for each, so that the work is alike.
NEIGHBOURS: tuple[tuple[Offset, ...], ...] = (
    (*_BEFORE, (-2, 0, 0)),
    (*((0, y, x) for y, x in _CROSS), *_BEFORE),
    (*((0, y, x) for y, x in _PLUS), *_BEFORE),
    (*((0, y, x) for y, x in [*_PLUS, *_CROSS]), *_BEFORE[:5]),
)


class Slab:
    """The codes of one level of a slab [z, rows, columns] while they are coded, with a frame of unknown ones.

    unknown: the code that stands for "not there"; one more than the largest.
    """

    def __init__(self, shape: tuple[int, int, int], unknown: int) -> None:
        self.shape = shape
        depth, rows, columns = shape
        self._wide = columns + 2
        self._deep = (rows + 2) * self._wide
        self.framed = np.full((depth + 2, rows + 2, self._wide), unknown, np.int32)
        self._flat = self.framed.reshape(-1)
        self._places = [self._of(first, second) for first, second in PASSES]
        self._offsets = [np.array([z * self._deep + y * self._wide + x for z, y, x in around]) for around in NEIGHBOURS]

    @property
    def inside(self) -> np.ndarray:
        """The codes, a view [z, rows, columns]."""
        return self.framed[2:, 1:-1, 1:-1]

    def places(self, z: int, number: int) -> np.ndarray:
        """Flat places of a pass of a slice; may be empty."""
        return self._places[number] + (z + 2) * self._deep

    def around(self, places: np.ndarray, number: int) -> np.ndarray:
        """Codes of the neighbours, int32 [n, neighbours]; what is coded later must not have been put yet."""
        return self._flat[places[:, None] + self._offsets[number]]

    def get(self, places: np.ndarray) -> np.ndarray:
        """The codes at flat places."""
        return self._flat[places]

    def put(self, places: np.ndarray, codes: np.ndarray) -> None:
        """Make codes known."""
        self._flat[places] = codes

    def _of(self, first: int, second: int) -> np.ndarray:
        _, rows, columns = self.shape
        y = np.arange(first, rows, 2) + 1
        x = np.arange(second, columns, 2) + 1
        return (y[:, None] * self._wide + x).reshape(-1)
