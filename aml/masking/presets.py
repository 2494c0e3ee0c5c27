"""Presets of masked learning: named settings that an experiment starts from."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "calibrated": {},
    "balanced": {"balance_target": True},
    "both": {"clean_weight": 0.5},
    "confusable": {"sentence": "other", "weak": "highest"},
    "cached": {"stage1": "cached"},
    "cached_confusable": {"stage1": "cached", "sentence": "other", "weak": "highest"},
    "paper": {
        "source": "encoder",
        "score": "token_softmax",
        "projection": "gaussian",
        "width": 2048,
        "scale": 1.0,
        "tokens": "all",
        "threshold_mode": "absolute",
        "tau": 0.4,
        "rho": 0.25,
        "selection": "pixel",
        "stage1_scale": 1.0,
    },
    "release": {
        "source": "encoder",
        "score": "token_softmax",
        "projection": "linear",
        "normalise": False,
        "scale": 1.0,
        "tokens": "all",
        "threshold_mode": "absolute",
        "tau": 0.4,
        "rho": 0.25,
        "selection": "release",
        "clean_weight": 0.5,
        "stage1_scale": 1.0,
    },
}
"""calibrated: this project's defaults; balanced and both: the same hiding target and background
alike, and training the clean image too. confusable: what the prediction for another item's sentence
finds likeliest is hidden: objects, the referent or not. cached: calibrated with the alignment of an
earlier epoch; cached_confusable: what was found likeliest for any referent of the picture. paper:
the formulas as printed (tau 0.4, rho 0.25, D_a 2048, block 32 at 448 px). release: what the
released code computes (PMME, AFM, draws, both passes back-propagated at 0.5), without its third run
of the backbone."""
