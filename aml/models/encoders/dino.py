"""A frozen timm vision transformer with adapters beside its blocks: its states, its weights.

B samples, N = prefix + h*w tokens (class and registers first), C width
"""

from collections.abc import Callable
from typing import Any

import torch

from aml.errors import UserError
from aml.files import home_expanded

NAMES = ("norm1", "attn", "ls1", "norm2", "mlp", "ls2")
"""The parts of a plain block, which `adapted_states` runs one by one."""


def build_backbone(options: Any, read: bool) -> Any:
    """Return the vision transformer that the options name.

    Args:
        options: backbone, pretrained, size, vit_width, vit_depth and vit_heads.
        read: Whether its weights are read.

    Raises:
        UserError: A name timm does not know, another architecture, a size that is no multiple of
            the patch, or weights that cannot be had.
    """
    import timm

    if not timm.is_model(options.backbone):
        near = timm.list_models(f"*{options.backbone.split('.')[0][-12:]}*")[:3] or [
            "vit_base_patch14_reg4_dinov2"
        ]
        raise UserError(
            f"model.backbone {options.backbone!r} is not a model of timm; take a vision "
            "transformer, "
            f"as {', '.join(near)}"
        )
    sizes = {
        "embed_dim": options.vit_width,
        "depth": options.vit_depth,
        "num_heads": options.vit_heads,
    }
    given = {key: value for key, value in sizes.items() if value is not None}
    if options.pretrained is False and "dinov2" in options.backbone:
        # timm starts layer scales at 1e-5: untrained and frozen, no block would do anything
        given["init_values"] = 1.0
    model = _create(timm, options, given, read)
    if not all(
        hasattr(block, name) for block in getattr(model, "blocks", [None]) for name in NAMES
    ):
        raise UserError(
            f"model.backbone {options.backbone!r} is not a plain vision transformer; take one, as "
            "vit_base_patch14_reg4_dinov2"
        )
    patch = model.patch_embed.patch_size[0]
    if options.size % patch:
        raise UserError(
            f"model.size is {options.size}; {options.backbone} needs a multiple of its patch of "
            f"{patch} pixels"
        )
    return model


def _create(timm: Any, options: Any, given: dict[str, Any], read: bool) -> Any:
    given |= {"img_size": options.size, "dynamic_img_size": True, "num_classes": 0}
    if not read or options.pretrained is False:
        return _refused(
            lambda: timm.create_model(options.backbone, pretrained=False, **given),
            options,
            "take a plain vision transformer and sizes that fit together",
        )
    if options.pretrained is True:
        advice = "give a file as model.pretrained, or false for random weights"
        return _refused(
            lambda: timm.create_model(options.backbone, pretrained=True, **given), options, advice
        )
    file = home_expanded(options.pretrained)
    if not file.is_file():
        raise UserError(
            f"model.pretrained {options.pretrained!r} is no file; give the weights of "
            f"{options.backbone}, true for timm's, or false"
        )
    overlay = {"file": str(file)}
    return _refused(
        lambda: timm.create_model(
            options.backbone, pretrained=True, pretrained_cfg_overlay=overlay, **given
        ),
        options,
        f"give the weights of {options.backbone}, timm's or the original ones",
    )


def _refused(create: Callable, options: Any, advice: str) -> Any:
    """Return create(), or raise one sentence on why it failed."""
    try:
        return create()
    except Exception as error:  # hub, network, file libraries and timm each raise their own
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"model.backbone {options.backbone!r} with pretrained {options.pretrained!r} cannot be "
            f"built ({reason}); {advice}"
        ) from None


def adapted_states(
    vit: Any,
    x: torch.Tensor,
    beside: Callable | None = None,
    *,
    levels: tuple[int, ...] = (),
    stop: int | None = None,
) -> Any:
    """Run a vision transformer with something beside its blocks.

    Args:
        vit: The model.
        x: (B, 3, H, W) normalised.
        beside: beside(i, y) is added to the output of block i's MLP, which reads y (B, N, C); None
            adds nothing.
        levels: Blocks after which the patches are returned.
        stop: A block whose y is returned instead; nothing deeper runs.

    Returns:
        The patches [(B, h*w, C), ...] after the blocks in `levels` and, normed, after the last;
        with
        `stop` y (B, N, C).
    """
    state = vit.norm_pre(vit._pos_embed(vit.patch_embed(x)))
    prefix = vit.num_prefix_tokens
    found = []
    for i, block in enumerate(vit.blocks):
        state = state + block.ls1(block.attn(block.norm1(state)))
        y = block.norm2(state)
        if i == stop:
            return y
        added = beside(i, y) if beside else None
        state = state + block.ls2(block.mlp(y) + (0 if added is None else added))
        if i in levels:
            found.append(state[:, prefix:])
    return [*found, vit.norm(state)[:, prefix:]]
