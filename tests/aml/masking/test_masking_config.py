"""Settings of masked learning: what is refused, what the presets are, where an arm lies."""

import math

import pytest

from aml.errors import UserError
from aml.masking.config import MaskingConfig, preset
from tests.aml.masking.test_masking import ENCODER, Stub, mask_of, masker_of


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"tua": 0.4}, r"unknown key aml\.tua; did you mean aml\.tau\?"),
        ({"name": "calibratd"}, r"did you mean calibrated\?"),
        ({"mode": "alm"}, r"aml\.mode is 'alm' \(did you mean aml\?\); known: off, random, aml"),
        ({"fill": "black"}, r"aml\.fill is 'black'; known: zero, mean"),
        ({"tau": 1.2}, r"aml\.tau is 1\.2; it must be a number in \[0, 1\]"),
        ({"rho": -0.1}, r"aml\.rho is -0\.1"),
        ({"tau": math.nan}, r"aml\.tau is nan"),
        ({"tau": True}, r"aml\.tau is True"),
        ({"rho": "half"}, r"aml\.rho is 'half'"),
        ({"clean_weight": 2}, r"aml\.clean_weight is 2"),
        ({"clean_weight": 1}, r"aml\.clean_weight is 1; it must be a number in \[0, 1\)"),
        ({"rate": "same"}, r"aml\.rate is 'same'.*match or null"),
        ({"rate": 1.5}, r"aml\.rate is 1\.5"),
        ({"source": "encoder"}, "the prediction is scored by probability and nothing else is"),
        ({"score": "cosine"}, "set both or neither"),
        ({"scale": 0}, r"aml\.scale is 0; it must be a number above 0 or auto"),
        ({"scale": "large"}, r"aml\.scale is 'large'"),
        ({"scale": math.inf}, r"aml\.scale is inf"),
        ({"block": 0}, r"aml\.block is 0; it must be a whole number"),
        ({"stage1_scale": 0}, r"aml\.stage1_scale is 0"),
        ({"stage1_scale": 1.5}, r"a number in \(0, 1\]"),
        ({"warmup_epochs": -1}, r"aml\.warmup_epochs is -1"),
        ({"width": 64}, "projection identity keeps the model's width"),
        ({"width": 0, "projection": "gaussian"}, r"aml\.width is 0"),
    ],
)
def test_refused_settings(settings, words):
    with pytest.raises(UserError, match=words):
        preset(**settings)


@pytest.mark.parametrize(
    "settings", [{"tau": 0.1, "rho": 0.1}, {"mode": "random", "rate": 0.01}, {"tau": 0.0}]
)
def test_a_share_that_hides_less_than_one_block_is_refused(settings):
    with pytest.raises(UserError, match=r"tau\*rho\*n = .* less than one.*at least 0\.0156"):
        masker_of(**settings)
    masker_of(mode="off", **{k: v for k, v in settings.items() if k != "mode"})
    masker_of(tau=0.125, rho=0.125)  # exactly one of 64


def test_a_source_the_model_lacks_is_refused_with_its_list():
    with pytest.raises(
        UserError, match="source joint is not offered by model stub; it offers encoder, prediction"
    ):
        masker_of(**{**ENCODER, "source": "joint"})


def test_unequal_widths_need_a_gaussian_projection():
    model = Stub(text_width=5)
    for projection in ("identity", "shared"):
        with pytest.raises(
            UserError,
            match=rf"projection {projection} needs equal widths, .* 3 \(image\) and 5 \(text\)",
        ):
            mask_of(*masker_of(model=model, projection=projection, **ENCODER))
    assert mask_of(*masker_of(model=model, projection="gaussian", **ENCODER)).hidden.any()


def test_presets():
    assert (
        preset() == MaskingConfig()
        and preset().threshold_mode == "quantile"
        and preset().selection == "block"
    )
    paper = preset("paper")
    assert (paper.tau, paper.rho, paper.width, paper.source, paper.score) == (
        0.4,
        0.25,
        2048,
        "encoder",
        "token_softmax",
    )
    assert (paper.projection, paper.threshold_mode, paper.selection, paper.tokens, paper.scale) == (
        "gaussian",
        "absolute",
        "pixel",
        "all",
        1.0,
    )
    assert preset("paper", tau=0.1) == MaskingConfig(**{**vars(paper), "tau": 0.1})
    assert [preset("paper").block_side(size) for size in (448, 112, 480)] == [32, 8, 34] and preset(
        block=5
    ).block_side(448) == 5


@pytest.mark.parametrize(
    "settings, arm, share, coordinates",
    [
        ({}, "aml/calibrated", 0.25, (0.5, 0.5)),
        ({"name": "paper"}, "aml/paper", 0.1, (0.4, 0.25)),
        ({"mode": "off"}, "off", 0, (0, 0)),
        ({"mode": "random"}, "random", 0.25, (1, 0.25)),
        ({"mode": "random", "rate": 0.16}, "random", 0.16, (1, 0.16)),
    ],
)
def test_arms_and_their_coordinates(settings, arm, share, coordinates):
    config = preset(**settings)
    assert (config.arm, config.share, config.coordinates) == (arm, share, coordinates)
