"""A trained checkpoint applied to pictures and sentences. Nothing of masking runs here.

A picture is encoded once for all of its sentences, where the model's visual encoder does not read them.

    N pictures, B sentences, S network size, h w logits, H W a picture's own size
"""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from aml.data import fit_image, placement
from aml.errors import UserError
from aml.training import PRECISIONS, load_model


class Segmenter:
    """Segments the referents of sentences in pictures of any size."""

    def __init__(
        self,
        model,
        *,
        image_size: int,
        fit: str = "square",
        threshold: float = 0.5,
        device="cpu",
        precision: str = "fp32",
    ):
        if precision not in PRECISIONS:
            raise UserError(f"precision is {precision!r}; known: {', '.join(PRECISIONS)}")
        self.model, self.image_size, self.fit, self.threshold, self.precision = (
            model.eval(),
            image_size,
            fit,
            threshold,
            precision,
        )
        self.to(device)

    @classmethod
    def load(cls, folder: str | Path, device="cpu", precision: str | None = None) -> "Segmenter":
        """From a checkpoint folder. UserError where it is none, or for an unknown precision.   precision: None, the usual one"""
        model, config = load_model(Path(folder), device)
        size = {key: config[key] for key in ("image_size", "fit", "threshold")}
        return cls(
            model, **size, device=device, precision=precision or usual_precision(config, device)
        )

    def to(self, device) -> "Segmenter":
        self.model, self.device = self.model.to(device), torch.device(device)
        return self

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> list[torch.Tensor]:
        """What the model sees before it reads: its maps, or the normalised pictures where it fuses words into its encoder.

        images (N, S, S, 3) uint8 -> a list of (N, ...)
        """
        x = torch.tensor(images, device=self.device).permute(
            0, 3, 1, 2
        )  # a copy: a lone picture may be read-only
        with self.autocast():
            x = self.model.normalise(x)
            return [x] if self.model.fuses else self.model.encode(x)

    @torch.inference_mode()
    def decode(self, seen: list[torch.Tensor], sentences: list[str]) -> torch.Tensor:
        """Foreground logits.   seen: as `encode` gives it, a picture a sentence -> (B, h, w) float32"""
        tokens, token_mask = self.tokens(sentences)
        with self.autocast():
            logits = (
                self.model(seen[0], tokens, token_mask)
                if self.model.fuses
                else self.model.decode(seen, tokens, token_mask)
            )
        return logits.float()

    def tokens(self, sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """-> tokens (B, L), token_mask (B, L), L the longest of these sentences: padding that no sentence needs is not computed."""
        tokens, token_mask = self.model.tokenise(sentences)
        longest = int(token_mask.sum(1).max())
        return tokens[:, :longest].to(self.device), token_mask[:, :longest].to(self.device)

    def logits(self, images: np.ndarray, sentences: list[str]) -> torch.Tensor:
        """A picture a sentence, each encoded.   images (B, S, S, 3) uint8 -> (B, h, w) float32"""
        return self.decode(self.encode(images), sentences)

    @torch.inference_mode()
    def answers(
        self, images: np.ndarray, sentences: list[str], of: list[int], batch: int
    ) -> Iterator[torch.Tensor]:
        """Each picture encoded once, sentences decoded in even parts of at most `batch`; sentence k is about picture of[k].

        images (N, S, S, 3) uint8 -> logits of the parts in turn, together (B, h, w) float32
        """
        seen, where = self.encode(images), torch.tensor(of, device=self.device)
        parts = -(-len(sentences) // batch)
        for i in range(parts):
            low, high = (k * len(sentences) // parts for k in (i, i + 1))
            yield self.decode([m[where[low:high]] for m in seen], sentences[low:high])

    def probabilities(
        self,
        image: np.ndarray,
        sentences: list[str],
        seen: list[torch.Tensor] | None = None,
        batch: int = 16,
    ) -> np.ndarray:
        """Foreground probability at the picture's own size, one map a sentence.

        image (H, W, 3) uint8 RGB; seen: `see(image)`, if at hand -> (B, H, W) float32 in [0, 1]
        """
        seen = self.see(image) if seen is None else seen
        parts = (sentences[i : i + batch] for i in range(0, len(sentences), batch))
        logits = torch.cat(
            [self.decode([m.expand(len(some), *m.shape[1:]) for m in seen], some) for some in parts]
        )
        return np.stack(
            [
                to_original(z, image.shape[:2], self.image_size, self.fit).sigmoid().cpu().numpy()
                for z in logits
            ]
        )

    def see(self, image: np.ndarray) -> list[torch.Tensor]:
        """`encode` of one picture of any size.   image (H, W, 3) uint8"""
        return self.encode(fit_image(image, self.image_size, self.fit)[None])

    def segment(self, image: np.ndarray, sentence: str) -> np.ndarray:
        """Foreground probability at the picture's own size.   image (H, W, 3) uint8 RGB -> (H, W) float32 in [0, 1]"""
        return self.probabilities(image, [sentence])[0]

    def mask(self, image: np.ndarray, sentence: str) -> np.ndarray:
        """(H, W) bool: probability at or above the checkpoint's threshold."""
        return self.segment(image, sentence) >= self.threshold

    def autocast(self):
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()


def usual_precision(config: dict, device) -> str:
    """That of training on a GPU, fp32 on a CPU.   config: of a checkpoint"""
    return config.get("precision", "fp32") if torch.device(device).type == "cuda" else "fp32"


def to_original(
    logits: torch.Tensor, original: tuple[int, int], image_size: int, fit: str
) -> torch.Tensor:
    """Logits back to the picture's own size, the letterbox cut off.   (h, w) -> (H, W)"""
    top, left, bottom, right = placement(*original, image_size, fit)
    square = F.interpolate(
        logits[None, None], (image_size, image_size), mode="bilinear", align_corners=False
    )
    picture = square[..., top:bottom, left:right]
    return F.interpolate(picture, tuple(original), mode="bilinear", align_corners=False)[0, 0]
