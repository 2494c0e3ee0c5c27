"""Code of the logged MLflow model ("model from code").

MLflow copies this file into the logged model and executes it to load one. No other module imports
it, so mlflow may be imported at the top. Apart from mlflow it needs the package aml alone, which is
stored beside it in the logged model.

Input: a table with the columns `image` (bytes of a JPEG or PNG file) and `expression` (text).
Output: a table with one row for each input row and the column `mask`: bytes of a one-channel PNG of
the image's own size, 255 where the referent of the expression is, else 0.
"""

import io
from pathlib import Path

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

EXPRESSION_LETTERS = 5_000
"""Letters of an expression at most."""

OPTION = 'model_config["max_megapixels"]'
"""What raises the largest size of a picture."""


class Champion(PythonModel):
    """Segment referring expressions with a checkpoint through MLflow's predict.

    Runs on the CPU unless loaded with `model_config={"device": "cuda"}`, and reads pictures of up
    to 100 megapixels unless loaded with `model_config={"max_megapixels": ...}`.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint that MLflow stored with the model."""
        from aml.inference import Segmenter
        from aml.reading import MAX_PIXELS, pixels_of

        device = (context.model_config or {}).get("device", "cpu")
        megapixels = (context.model_config or {}).get("max_megapixels")
        self.max_pixels = pixels_of(megapixels) if megapixels else MAX_PIXELS
        self.segmenter = Segmenter.load(Path(context.artifacts["checkpoint"]), device=device)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict | None = None,
    ) -> pd.DataFrame:
        """Return a mask for each row of image and expression.

        Args:
            context: MLflow's context, which is not used here.
            model_input: Columns `image` (bytes of a JPEG or PNG file) and `expression` (text).
            params: MLflow's inference parameters, of which there are none.

        Returns:
            Column `mask`: bytes of a one-channel PNG of the image's size.

        Raises:
            UserError: An image cannot be read; the message names its row.
        """
        pairs = zip(model_input["image"], model_input["expression"], strict=True)
        return pd.DataFrame(
            {"mask": [self._mask(row, image, text) for row, (image, text) in enumerate(pairs)]}
        )

    def _mask(self, row: int, image: bytes, expression: str) -> bytes:
        import numpy as np
        from PIL import Image

        from aml.errors import UserError
        from aml.reading import decode_as, describe, open_picture, text_problem

        name = f"row {row}: the image"
        if not isinstance(image, bytes):
            raise UserError(
                f"{name} cannot be read (it is {describe(image)}); give the bytes of a JPEG or "
                "PNG file"
            )
        if problem := text_problem(expression, EXPRESSION_LETTERS):
            raise UserError(f"row {row}: the expression {problem}; give a text")
        pixels = np.array(
            decode_as(open_picture(image, name, self.max_pixels, option=OPTION), name)
        )
        is_referent = self.segmenter.segment(pixels, expression) >= self.segmenter.threshold
        out = io.BytesIO()
        Image.fromarray(is_referent.astype(np.uint8) * 255).save(out, format="PNG")
        return out.getvalue()


set_model(Champion())
