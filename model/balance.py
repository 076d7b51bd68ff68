"""How often each series is drawn: by its size, and where wanted evenly over scanners, modalities or classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.config import ModelConfig
from model.source import Source


def cell_of(source: Source, keys: Sequence[str]) -> tuple[str, ...]:
    """The cell of a series: its modality, its site and its class, as far as `keys` names them; '' where unknown.

    site: the manufacturer, (0008,0070), which is all that the archive keeps of where an image was made. class: the
    pseudonym of the folder that a picture lay in.
    """
    about = source.attributes
    known = {
        "modality": about.get("modality"),
        "site": about.get("acquisition", {}).get("manufacturer"),
        "class": about.get("class") or about.get("acquisition", {}).get("class"),
    }
    return tuple(str(known[key] or "") for key in keys)


def drawing_weights(sources: Sequence[Source], config: ModelConfig) -> np.ndarray:
    """Probability of each series, float64 [N], sum 1.

    Within a cell by voxels ** temperature; cells of `balance` by their voxels ** balance_temperature, so that 0 draws
    from every cell alike, however little it holds.
    """
    voxels = np.array([float(np.prod(source.shape)) for source in sources])
    within = voxels**config.temperature
    if not config.balance:
        return within / within.sum()
    cells = [cell_of(source, config.balance) for source in sources]
    weights = np.zeros(len(voxels))
    for cell in sorted(set(cells)):
        members = np.array([other == cell for other in cells])
        weights[members] = within[members] / within[members].sum() * voxels[members].sum() ** config.balance_temperature
    return weights / weights.sum()
