"""Training: one loop that runs phases."""
