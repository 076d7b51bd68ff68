"""voxbook: model."""
