"""Compare runs over their seeds, and evaluations of checkpoints over their images."""
