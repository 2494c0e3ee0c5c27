"""Check the pages that `preview` and `data show` write."""

import re

import pytest

from aml.data.refer_counts import split_counts
from aml.errors import UserError
from orchestrator.config.loader import from_dict
from orchestrator.evaluation.pages import data_page, masking_preview

SIZE = 32


def experiment(data, **aml):
    tree = {
        "name": "look",
        "data": {"train": str(data.root / "shards"), "size": SIZE},
        "model": {"name": "small", "width": 32, "stem": 16},
        "aml": aml,
    }
    return from_dict(tree)


def text_of(page):
    return " ".join(
        re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text(), flags=re.S).split()
    )


@pytest.mark.parametrize(
    ("aml", "says"),
    [
        ({"tau": 0.5, "rho": 0.5, "block": 2}, "0.5 0.5 50."),
        ({"preset": "paper", "block": 8}, "nearly the whole picture"),
        ({"source": "encoder", "score": "token_softmax", "block": 2}, "calibrated on these items"),
        ({"mode": "random", "tau": 0.5, "rho": 0.4, "block": 2}, "1 0.2 100.0% 20."),
        ({"mode": "off"}, "Mode off hides nothing"),
    ],
)
def test_the_preview_page_shows_pictures_and_realised_shares(data, tmp_path, aml, says):
    page = masking_preview.preview_masks(experiment(data, **aml), 3, tmp_path / "page.html")
    text = text_of(page)
    assert says in text
    assert ("alignment is noise" in text) == (aml.get("mode") != "off")
    assert (
        page.read_text().count('<section class="item">') == 3
        and text.count("hidden of the target") == 3
    )
    assert not re.search(r'((src|href)="|url\()(?!data:)', page.read_text())


def test_the_preview_of_a_trained_model_does_not_call_it_noise(data, tmp_path):
    text = text_of(
        masking_preview.preview_masks(
            experiment(data), 2, tmp_path / "page.html", init=data.checkpoint
        )
    )
    assert "noise" not in text and "trained: " in text
    with pytest.raises(UserError, match="set data.size=32"):
        masking_preview.preview_masks(
            experiment(data).with_overrides({"data.size": 64}),
            2,
            tmp_path / "page.html",
            init=data.checkpoint,
        )


def test_the_data_page_counts_the_split(data, tmp_path):
    page = data_page.show_data(data.store, "val", 2, tmp_path / "page.html")
    counts = split_counts(data.rows)["val"]
    text = text_of(page)
    assert (
        f"pictures {counts['images']}, median" in text
        and f"sentences {counts['sentences']}," in text
        and f"refs {counts['refs']}," in text
    )
    shown = re.findall(r"image (\d+)", text)
    assert len(shown) == 2 == page.read_text().count("<img ")
    for row in data.rows:
        if str(row["image_id"]) in shown:
            assert all(
                s["sent"] in text
                for ref in row["refs"]
                if ref["split"] == "val"
                for s in ref["sentences"]
            )


def test_pages_refuse_what_cannot_be_shown(data, tmp_path):
    for call in (
        lambda: data_page.show_data(data.store, "tset", 2, tmp_path / "p.html"),
        lambda: data_page.show_data(data.store, "val", 0, tmp_path / "p.html"),
        lambda: masking_preview.preview_masks(
            experiment(data, mode="random", level="words"), 1, tmp_path / "p.html"
        ),
    ):
        with pytest.raises(UserError, match="no split 'tset'|at least one|aml.level words hides"):
            call()
    assert not (tmp_path / "p.html").exists()
