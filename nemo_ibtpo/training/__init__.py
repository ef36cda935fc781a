"""Training: the loop, what builds its parts, and what a run leaves and goes on from. It joins all packages."""
