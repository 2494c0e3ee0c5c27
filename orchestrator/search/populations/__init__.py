"""Population-based training: an arm's population in generations, and its record on disk."""
