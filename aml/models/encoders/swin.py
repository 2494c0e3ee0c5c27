"""Swin, the visual encoder of CARIS and LAVT, and its original weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from aml.errors import UserError
from aml.models.encoders.pretrained import one_line

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and spread of ImageNet's pictures in [0, 1], with which Swin, CARIS and LAVT were trained.
"""

SWINS: dict[str, tuple[str, dict[str, Any]]] = {
    "swin_test": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 16, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 8)},
    ),
    "swin_tiny": ("swin_tiny_patch4_window7_224", {}),
    "swin_small": ("swin_small_patch4_window7_224", {}),
    "swin_base": ("swin_base_patch4_window7_224", {}),
}
"""Size -> timm's name of it with windows of 7, and what differs from that model."""

SWIN_BASE_12 = "swin_base_patch4_window12_384"

HUB_TAG = "ms_in22k"
"""The weights `pretrained: true` fetches: ImageNet-22k, as CARIS and LAVT start from."""

TABLE = "relative_position_bias_table"


class Swin(nn.Module):
    """Swin in four stages that can be run one by one, with a norm for each stage's output.

    As in segmentation code, windows keep their size and shift at every map size: a map is padded to
    whole windows first.
    """

    def __init__(self, size: str, window: int, drop_path: float, pretrained: bool | str):
        """Build the encoder.

        Args:
            size: A key of SWINS.
            window: Side of the windows in places.
            drop_path: Largest rate of stochastic depth.
            pretrained: False for random weights; True for timm's from the hub; or a file of Swin
                weights in the original or in timm's naming.

        Raises:
            UserError: Weights that cannot be had or do not fit.
        """
        super().__init__()
        self.window = window
        self.body = _body(size, window, drop_path, pretrained)
        self.channels = self.body.feature_info.channels()
        self.norms = nn.ModuleList([nn.LayerNorm(c) for c in self.channels])

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Return the first map (B, H/4, W/4, C) of images (B, 3, H, W)."""
        return self.body["patch_embed"](x)

    def stage(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """Run stage i on a map (B, h, w, C); the result is not normalised.

        Stages 1 to 3 halve its sides first.
        """
        layer = self.body[f"layers_{i}"]
        x = layer.downsample(x)
        for block in layer.blocks:
            x = swin_block(block, x)
        return x

    def out(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """Return stage i's map (B, h, w, C) normalised, as (B, C, h, w)."""
        return self.norms[i](x).permute(0, 3, 1, 2)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the four normalised maps at 1/4, 1/8, 1/16, 1/32, channels first."""
        x = self.embed(x)
        maps = []
        for i in range(4):
            x = self.stage(i, x)
            maps.append(self.out(i, x))
        return maps


def swin_block(block: Any, x: torch.Tensor) -> torch.Tensor:
    """Run one of timm's blocks on a map (B, h, w, C).

    The map is padded to whole windows before the windows are shifted, as in the segmentation code
    the published models were trained with; timm's own forward pads after the shift, which is
    another
    function where h or w is no multiple of the window.
    """
    _, h, w, _ = x.shape
    high, wide = block.window_size
    y = F.pad(block.norm1(x), (0, 0, 0, -w % wide, 0, -h % high))
    x = x + block.drop_path1(block._attn(y)[:, :h, :w])
    return x + block.drop_path2(block.mlp(block.norm2(x)))


def _body(size: str, window: int, drop_path: float, pretrained: bool | str) -> Any:
    import timm

    name, changes = SWINS[size]
    if (size, window) == ("swin_base", 12):
        name = SWIN_BASE_12
    if pretrained is True and changes:
        raise UserError(
            f"model.backbone {size} has no published weights; set model.pretrained to false or "
            "to a "
            "file of its weights"
        )
    how: dict[str, Any] = {
        "features_only": True,
        "strict_img_size": False,
        "always_partition": True,
        "drop_path_rate": drop_path,
        "window_size": window,
    }
    if pretrained is not True:
        body = timm.create_model(name, pretrained=False, **how, **changes)
        return load_swin(body, window, Path(pretrained)) if pretrained else body
    try:
        return timm.create_model(f"{name}.{HUB_TAG}", pretrained=True, **how)
    except Exception as error:
        # the hub's client raises its own classes, those of its HTTP library, and OSError
        raise UserError(
            f"the weights of {name}.{HUB_TAG} cannot be fetched ({one_line(error)}); set "
            "model.pretrained to a file of Swin weights, or to false"
        ) from None


def load_swin(body: Any, window: int, path: Path) -> Any:
    """Fill timm's four stages with the weights of a file.

    Relative position tables of another window are interpolated. The original .pth names the layer
    that halves a map with the stage before it, timm with the stage after it; both are read.

    Args:
        body: timm's model.
        window: Side of its windows.
        path: The file.

    Returns:
        The model.

    Raises:
        UserError: The first parameter that is missing or has another shape.
    """
    from timm.layers import resize_rel_pos_bias_table
    from timm.models import load_state_dict

    try:
        weights = load_state_dict(str(path))
        original = swin_name("layers_1.downsample.reduction.weight") in weights
    except Exception as error:
        # a damaged or foreign file raises UnpicklingError, RuntimeError, EOFError, KeyError ...
        raise UserError(
            f"Swin weights {path} cannot be read ({one_line(error)}); give the .pth as "
            "published, or "
            "timm's safetensors"
        ) from None
    state = {}
    for key, own in body.state_dict().items():
        name = swin_name(key) if original else key.replace("layers_", "layers.")
        value = weights.get(name)
        if (
            value is not None
            and key.endswith(TABLE)
            and value.shape != own.shape
            and value.shape[1:] == own.shape[1:]
            and square(value)
        ):
            value = resize_rel_pos_bias_table(value, (window, window), own.shape)
        state[key] = fitting(
            name,
            value,
            own,
            f"Swin weights {path}",
            "set model.backbone to the size the file is of",
        )
    body.load_state_dict(state)
    return body


def swin_name(key: str) -> str:
    """Return what the original Swin code calls a parameter of timm's `features_only` model."""
    if ".downsample." in key:
        stage, rest = key.removeprefix("layers_").split(".", 1)
        return f"layers.{int(stage) - 1}.{rest}"
    return key.replace("layers_", "layers.")


def square(table: torch.Tensor) -> bool:
    """Return whether a relative position table ((2n - 1)^2, heads) is of a square window."""
    return round(len(table) ** 0.5) ** 2 == len(table)


def fitting(
    name: str, value: torch.Tensor | None, own: torch.Tensor, where: str, remedy: str
) -> torch.Tensor:
    """Return a weight that has the shape of the model's own; raise UserError for another.

    Args:
        name: Name of the weight in its file.
        value: The weight; None where the file lacks it.
        own: The model's weight.
        where: Names the file in messages.
        remedy: What to do, for messages.
    """
    if value is None:
        raise UserError(f"{where} hold no {name}; {remedy}")
    if value.shape != own.shape:
        raise UserError(
            f"{where} hold {name} of shape {tuple(value.shape)}, but the model's is "
            f"{tuple(own.shape)}; {remedy}"
        )
    return value


class Normalise(nn.Module):
    """Turns uint8 images into float, their mean at 0; its constants lie in no checkpoint."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float] = MEAN, std: Sequence[float] = STD):
        """Take mean and spread of pictures in [0, 1]; ImageNet's by default."""
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, image):
        return (image.float() - self.mean) / self.std
