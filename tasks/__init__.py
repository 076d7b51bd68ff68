"""voxbook: tasks."""
