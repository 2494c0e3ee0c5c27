"""Visual and text encoders that several networks share: Swin, DINO, BERT, CLIP's text tower."""
