"""The champion as an MLflow model: MLflow copies this file into the logged model and executes it to load one ("model
from code").

Nothing else imports it, so unlike its neighbours it may import mlflow at the top. It leans only on the `aml` package
that `tracking.Tracker.model` stores beside it.

Input: a table with the columns `image` (bytes of a JPEG or PNG file) and `expression` (text). Output: a table with
one row for each, column `mask`: bytes of a one-channel PNG of the image's own size, 255 where the expression's
referent is, else 0."""

import io
from pathlib import Path

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Champion(PythonModel):
    """A checkpoint folder behind MLflow's predict. Runs on the CPU unless loaded with `model_config={"device":
    "cuda"}`."""

    def load_context(self, context) -> None:
        from aml.inference import Segmenter

        device = (context.model_config or {}).get("device", "cpu")
        self.segmenter = Segmenter.load(Path(context.artifacts["checkpoint"]), device=device)

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:
        """Rows of (image bytes, expression) -> rows of mask PNG bytes. Raises UserError naming the row whose image
        cannot be read."""
        pairs = zip(model_input["image"], model_input["expression"], strict=True)
        return pd.DataFrame(
            {"mask": [self._mask(row, image, text) for row, (image, text) in enumerate(pairs)]}
        )

    def _mask(self, row: int, image: bytes, expression: str) -> bytes:
        import numpy as np
        from PIL import Image

        from aml.errors import UserError

        try:
            pixels = np.array(Image.open(io.BytesIO(image)).convert("RGB"))
        except OSError as error:
            raise UserError(
                f"row {row}: the image cannot be read ({error}); wanted the bytes of a JPEG or PNG file"
            ) from error
        chosen = self.segmenter.segment(pixels, expression) >= self.segmenter.threshold
        out = io.BytesIO()
        Image.fromarray(chosen.astype(np.uint8) * 255).save(out, format="PNG")
        return out.getvalue()


set_model(Champion())
