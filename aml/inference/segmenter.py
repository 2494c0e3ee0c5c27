"""Apply a trained checkpoint to pictures and sentences. No masking runs here.

A picture is encoded once for all of its sentences, unless the model fuses words into its visual
encoder (`model.fuses`).

Shapes: N pictures, B sentences, S network size, h and w height and width of the logits, H and W a
picture's own height and width, L tokens.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from aml.data import fit_image, placement
from aml.errors import UserError
from aml.training import PRECISIONS, load_model


class Segmenter:
    """Segment the referents of sentences in pictures of any size.

    The class is long because each way to ask it, from one sentence to many pictures, has its
    arguments and shapes described."""

    def __init__(
        self,
        model: Any,
        *,
        image_size: int,
        fit: str = "square",
        threshold: float = 0.5,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
    ):
        """Move the model to the device and put it in evaluation mode.

        Args:
            model: One of aml.models.
            image_size: Side of the square network image, S, in pixels.
            fit: How a picture becomes square, "square" or "letterbox".
            threshold: Probability from which a pixel belongs to the referent.
            device: Where the model computes.
            precision: A key of aml.training.PRECISIONS.

        Raises:
            UserError: The precision is unknown.
        """
        if precision not in PRECISIONS:
            raise UserError(f"precision is {precision!r}; known: {', '.join(PRECISIONS)}")
        self.model = model.eval()
        self.image_size = image_size
        self.fit = fit
        self.threshold = threshold
        self.precision = precision
        self.to(device)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        precision: str | None = None,
    ) -> "Segmenter":
        """Return a Segmenter for a checkpoint folder.

        Args:
            folder: The checkpoint folder.
            device: Where the model computes.
            precision: A key of aml.training.PRECISIONS; None takes `default_precision`.

        Raises:
            UserError: The folder is no checkpoint, or the precision is unknown.
        """
        model, config = load_model(Path(folder), device)
        return cls(
            model,
            image_size=config["image_size"],
            fit=config["fit"],
            threshold=config["threshold"],
            device=device,
            precision=precision or default_precision(config, device),
        )

    def to(self, device: str | torch.device) -> "Segmenter":
        """Move the model to the device and return this Segmenter."""
        self.model = self.model.to(device)
        self.device = torch.device(device)
        return self

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> list[torch.Tensor]:
        """Return everything the model computes before it reads a sentence.

        Args:
            images: (N, S, S, 3) uint8, RGB.

        Returns:
            The visual feature maps, each (N, ...); for a model that fuses words into its visual
            encoder a list with the normalised pictures alone.
        """
        # torch.tensor copies: the array of a single picture may be read-only.
        x = torch.tensor(images, device=self.device).permute(0, 3, 1, 2)
        with self.autocast():
            x = self.model.normalise(x)
            return [x] if self.model.fuses else self.model.encode(x)

    @torch.inference_mode()
    def decode(self, features: list[torch.Tensor], sentences: list[str]) -> torch.Tensor:
        """Return the foreground logits of one sentence for each picture.

        Args:
            features: The result of `encode`, with one picture for each of the B sentences.
            sentences: B sentences.

        Returns:
            (B, h, w) float32.
        """
        tokens, token_mask = self.tokenise(sentences)
        with self.autocast():
            if self.model.fuses:
                logits = self.model(features[0], tokens, token_mask)
            else:
                logits = self.model.decode(features, tokens, token_mask)
        return logits.float()

    def tokenise(self, sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return tokens (B, L) int64 and token_mask (B, L) bool on the model's device.

        L is the length of the longest of these sentences, so that no padding is computed that
        none of them needs.
        """
        tokens, token_mask = self.model.tokenise(sentences)
        longest = int(token_mask.sum(1).max())
        return tokens[:, :longest].to(self.device), token_mask[:, :longest].to(self.device)

    def logits(self, images: np.ndarray, sentences: list[str]) -> torch.Tensor:
        """Return the foreground logits of B sentences, encoding one picture for each of them.

        Args:
            images: (B, S, S, 3) uint8, RGB.
            sentences: B sentences.

        Returns:
            (B, h, w) float32.
        """
        return self.decode(self.encode(images), sentences)

    @torch.inference_mode()
    def iter_logits(
        self, images: np.ndarray, sentences: list[str], image_indices: list[int], batch: int
    ) -> Iterator[torch.Tensor]:
        """Encode each picture once and yield the logits of its sentences in batches of even size.

        Args:
            images: (N, S, S, 3) uint8, RGB.
            sentences: B sentences.
            image_indices: For each sentence the place of its picture in `images`.
            batch: Largest number of sentences decoded together.

        Yields:
            Foreground logits, float32, of some of the sentences in turn; (B, h, w) together.
        """
        features = self.encode(images)
        picture = torch.tensor(image_indices, device=self.device)
        parts = -(-len(sentences) // batch)
        for part in range(parts):
            low = part * len(sentences) // parts
            high = (part + 1) * len(sentences) // parts
            yield self.decode([m[picture[low:high]] for m in features], sentences[low:high])

    def probabilities(
        self,
        image: np.ndarray,
        sentences: list[str],
        features: list[torch.Tensor] | None = None,
        batch: int = 16,
    ) -> np.ndarray:
        """Return the foreground probability at the picture's own size, one map a sentence.

        Args:
            image: (H, W, 3) uint8, RGB.
            sentences: B sentences.
            features: The result of `encode_image(image)`, if it was computed before.
            batch: Largest number of sentences decoded together.

        Returns:
            (B, H, W) float32 in [0, 1].
        """
        if features is None:
            features = self.encode_image(image)
        logits = []
        for start in range(0, len(sentences), batch):
            some = sentences[start : start + batch]
            logits.append(self.decode([m.expand(len(some), *m.shape[1:]) for m in features], some))
        size = image.shape[0], image.shape[1]
        full = [
            resize_to_original(z, size, self.image_size, self.fit).sigmoid().cpu().numpy()
            for z in torch.cat(logits)
        ]
        return np.stack(full)

    def encode_image(self, image: np.ndarray) -> list[torch.Tensor]:
        """Return the result of `encode` for one picture of any size, (H, W, 3) uint8 RGB."""
        return self.encode(fit_image(image, self.image_size, self.fit)[None])

    def segment(self, image: np.ndarray, sentence: str) -> np.ndarray:
        """Return the foreground probability of one sentence at the picture's own size.

        Args:
            image: (H, W, 3) uint8, RGB.
            sentence: The expression.

        Returns:
            (H, W) float32 in [0, 1].
        """
        return self.probabilities(image, [sentence])[0]

    def mask(self, image: np.ndarray, sentence: str) -> np.ndarray:
        """Return where the probability is at or above the checkpoint's threshold, (H, W) bool."""
        return self.segment(image, sentence) >= self.threshold

    def autocast(self) -> AbstractContextManager:
        """Return the context in which the model computes at this Segmenter's precision."""
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype=dtype) if dtype else nullcontext()


def default_precision(config: dict, device: str | torch.device) -> str:
    """Return the precision of the checkpoint's training on a GPU, and fp32 on a CPU.

    Args:
        config: A checkpoint's configuration.
        device: Where the model will compute.
    """
    return config.get("precision", "fp32") if torch.device(device).type == "cuda" else "fp32"


def resize_to_original(
    logits: torch.Tensor, original: tuple[int, int], image_size: int, fit: str
) -> torch.Tensor:
    """Resize logits to the picture's own size and cut off the letterbox.

    Args:
        logits: (h, w).
        original: Height and width of the picture, H and W.
        image_size: Side of the network image, S, in pixels.
        fit: "square" or "letterbox".

    Returns:
        (H, W).
    """
    top, left, bottom, right = placement(*original, image_size, fit)
    square = F.interpolate(
        logits[None, None], (image_size, image_size), mode="bilinear", align_corners=False
    )
    picture = square[..., top:bottom, left:right]
    return F.interpolate(picture, tuple(original), mode="bilinear", align_corners=False)[0, 0]
