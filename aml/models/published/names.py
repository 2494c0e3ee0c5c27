"""Say what CARIS, MaskRIS and LAVT call a parameter of `caris` and `lavt`.

Names are those of github.com/lsa1997/CARIS (4b24546), naver-ai/maskris (01b54d5) and
yz93/LAVT-RIS (1da0af9).
"""

import re

from aml.models.encoders.swin import swin_name

UNUSED = re.compile(
    # made anew, or never read
    r"relative_position_index$|attn_mask$|position_ids$|num_batches_tracked$|(^|\.)pooler\."
    # of the loss, of training, behind the last stage
    r"|^criterion\.|^backbone\.vis_encoder\.mask_token$|^backbone\.layers\.3\.res_gate\."
)
"""Entries of a file that the network does not compute with."""

_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}

_CARIS_LAYER = {
    "words_read": "v2l_cross_attn",
    "words_mix": "lang_self_attn",
    "pixels_read": "l2v_cross_attn",
    "pixels_mix": "vis_self_attn",
    "words_scale": "gamma_v2l",
    "pixels_scale": "gamma_l2v",
    "words_feed.0": "lang_mlp.fc1",
    "words_feed.2": "lang_mlp.fc2",
    "pixels_feed.0": "vis_mlp.fc1",
    "pixels_feed.2": "vis_mlp.fc2",
    "words_norms.0": "l_norm1",
    "words_norms.1": "l_norm2",
    "words_norms.2": "l_norm3",
    "pixels_norms.0": "v_norm2",
    "pixels_norms.1": "v_norm1",
    "pixels_norms.2": "v_norm3",
}

CARIS_TEXT = "backbone.lang_encoder."
"""How the names of BERT's parameters begin in a file of CARIS."""

_CARIS = {
    "visual.norms.": "backbone.vis_encoder.norm",
    "text.": CARIS_TEXT,
    "prompts.inner.": "backbone.conditional_prompts.in_linears.",
    "prompts.outer.": "backbone.conditional_prompts.out_linears.",
    "prompts.learned": "backbone.conditional_prompts.lang_prompts.weight",
    "prompts.norm.": "backbone.conditional_prompts.lang_prompts_norm.",
    "decoder.level": "pixel_decoder.level_encoding.weight",
    "decoder.words.": "pixel_decoder.lang_in_linear.",
    "decoder.words_norm.": "pixel_decoder.lang_in_norm.",
    "decoder.background": "pixel_decoder.vis_prompts.weight",
    "decoder.pixels.": "pixel_decoder.mask_feature.",
    "decoder.queries.": "pixel_decoder.lang_embed.",
    **{
        f"decoder.enter.{i}.{j}.": f"pixel_decoder.input_convs.{i}.{part}."
        for i in range(3)
        for j, part in enumerate(("conv", "gn"))
    },
    **{
        f"decoder.side.{j}.": f"pixel_decoder.lateral_convs.0.{part}."
        for j, part in enumerate(("conv", "gn"))
    },
    **{
        f"decoder.merge.{j}.": f"pixel_decoder.output_convs.0.{part}."
        for j, part in enumerate(("conv", "gn"))
    },
}

_LAVT_FUSION = {
    "place": "vis_project.0",
    "query": "image_lang_att.f_query.0",
    "key": "image_lang_att.f_key.0",
    "value": "image_lang_att.f_value.0",
    "out": "image_lang_att.W.0",
    "mix": "project_mm.0",
}

_LAVT = {
    "visual.norms.": "backbone.norm",
    "text.": "text_encoder.",
    "decoder.head.": "classifier.conv1_1.",
    **{
        f"decoder.merge.{i}.{j}.": f"classifier.{part}_{4 - i}."
        for i in range(3)
        for j, part in ((0, "conv1"), (1, "bn1"), (3, "conv2"), (4, "bn2"))
    },
}


def caris_name(key: str) -> str:
    """Return what CARIS and MaskRIS call a parameter of `caris`."""
    if key.startswith("visual.body."):
        return "backbone.vis_encoder." + swin_name(key.removeprefix("visual.body."))
    if found := re.fullmatch(
        r"decoder\.layers\.(\d+)\.(\w+(?:\.\d)?)(?:\.(query|key|value|out))?(\..+)?", key
    ):
        layer, part, projection, rest = found.groups()
        middle = f".{_ATTENTION[projection]}" if projection else ""
        return f"pixel_decoder.encoder.{layer}.{_CARIS_LAYER[part]}{middle}{rest or ''}"
    return _by_prefix(key, _CARIS)


def lavt_name(key: str) -> str:
    """Return what LAVT calls a parameter of `lavt`; BERT's as where it is a part of the model."""
    if key.startswith("visual.body."):
        return "backbone." + swin_name(key.removeprefix("visual.body."))
    if found := re.fullmatch(r"fusion\.(\d)\.(\w+)\.(\w+)", key):
        return f"backbone.layers.{found[1]}.fusion.{_LAVT_FUSION[found[2]]}.{found[3]}"
    if found := re.fullmatch(r"gates\.(\d)\.(.+)", key):
        return f"backbone.layers.{found[1]}.res_gate.{found[2]}"
    return _by_prefix(key, _LAVT)


NAME = {"caris": caris_name, "lavt": lavt_name}


def _by_prefix(key: str, table: dict[str, str]) -> str:
    prefix = next(p for p in table if key.startswith(p))
    return table[prefix] + key.removeprefix(prefix)
