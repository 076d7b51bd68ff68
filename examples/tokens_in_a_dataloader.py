"""From a workspace to tokens in a PyTorch DataLoader: slabs of codes as integers, ready for an embedding.

python examples/tokens_in_a_dataloader.py ws ct
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from archive import open_codes
from archive.workspace import Workspace
from model import CodesDataset


def main(root: Path, group: str, width: int = 32) -> torch.Tensor:
    """Embed the first batch of one group's codes; returns float [B, width, z, y, x], levels summed."""
    workspace = Workspace.open(root)
    dataset = CodesDataset(workspace, group=group, patch=(1, None, None))
    # Series differ in size, so a batch is one slice of codes; with patches of a fixed size it may be larger.
    loader = DataLoader(dataset, batch_size=1)
    current = open_codes(workspace)
    members = [row.series for row in workspace.catalog.series(group=group) if row.codes_version]
    size = max(current[series].attributes["codebook_size"] for series in members)
    embedding = torch.nn.Embedding(size, width)
    codes = next(iter(loader))["codes"]  # int64 [B, L, z, y, x]
    embedded = embedding(codes).sum(1).movedim(-1, 1)
    print(
        f"{dataset.patches} slabs of {len(members)} series; a batch of codes {tuple(codes.shape)} -> {tuple(embedded.shape)}"
    )
    return embedded


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2])
