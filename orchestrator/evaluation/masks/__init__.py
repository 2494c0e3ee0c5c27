"""Masks as files: a split predicted by a checkpoint, and scores of masks that anybody predicted."""
