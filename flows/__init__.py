"""voxbook: flows."""
