"""Methods that hide nothing: `off`, and `two_pass`, the control for methods that train twice."""

from typing import TYPE_CHECKING, Any

from aml.masking.method import MaskingMethod

if TYPE_CHECKING:
    from aml.masking.step import Step


class Off(MaskingMethod):
    """Trains on the clean image once."""

    name = "off"
    hides = False

    def active(self, epoch: int) -> bool:
        """Return False: the image is clean in every epoch."""
        return False

    def check(self, model: Any, image_size: int) -> None:
        """Accept every model and size."""

    def train(self, step: "Step") -> None:
        """Run one pass on the clean image."""
        step.run(step.clean())


class TwoPass(MaskingMethod):
    """Trains on the clean image twice at half weight, with dropout drawn anew."""

    name = "two_pass"
    hides = False

    def check(self, model: Any, image_size: int) -> None:
        """Accept every model and size."""

    def train(self, step: "Step") -> None:
        """Run two passes on the clean image."""
        step.run(step.clean(weight=0.5, last=False))
        step.run(step.clean(weight=0.5))
