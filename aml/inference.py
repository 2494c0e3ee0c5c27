"""A trained checkpoint applied to pictures and sentences. Nothing of masking runs here."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from aml.checkpoint import load_model
from aml.data import fit_image, place


class Segmenter:
    """Segments the referent of a sentence in a picture of any size."""

    def __init__(self, model, *, image_size: int, fit: str = "square", threshold: float = 0.5, device="cpu"):
        self.model, self.image_size, self.fit, self.threshold, self.device = model.eval(), image_size, fit, threshold, torch.device(device)

    @classmethod
    def load(cls, folder: str | Path, device="cpu") -> "Segmenter":
        """From a checkpoint folder. UserError where it is none."""
        model, config = load_model(Path(folder), device)
        return cls(model, image_size=config["image_size"], fit=config["fit"], threshold=config["threshold"], device=device)

    @torch.inference_mode()
    def logits(self, images: np.ndarray, sentences: list[str]) -> torch.Tensor:
        """Foreground logits of pictures already at network size.   images (B, S, S, 3) uint8 -> (B, h, w) float32"""
        x = torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device)
        tokens, token_mask = (t.to(self.device) for t in self.model.tokenise(sentences))
        return self.model(self.model.normalise(x), tokens, token_mask).float()

    def segment(self, image: np.ndarray, sentence: str) -> np.ndarray:
        """Foreground probability at the picture's own size.   image (H, W, 3) uint8 RGB -> (H, W) float32 in [0, 1]"""
        logits = self.logits(fit_image(image, self.image_size, self.fit)[None], [sentence])
        return to_original(logits[0], image.shape[:2], self.image_size, self.fit).sigmoid().cpu().numpy()

    def mask(self, image: np.ndarray, sentence: str) -> np.ndarray:
        """(H, W) bool: probability at or above the checkpoint's threshold."""
        return self.segment(image, sentence) >= self.threshold


def to_original(logits: torch.Tensor, original: tuple[int, int], image_size: int, fit: str) -> torch.Tensor:
    """Logits back to the picture's own size, the letterbox cut off.   (h, w) -> (H, W)"""
    top, left, bottom, right = place(*original, image_size, fit)
    square = F.interpolate(logits[None, None], (image_size, image_size), mode="bilinear", align_corners=False)
    picture = square[..., top:bottom, left:right]
    return F.interpolate(picture, tuple(original), mode="bilinear", align_corners=False)[0, 0]
