"""Read checkpoints that the authors of CARIS, MaskRIS and LAVT published."""
