"""Score masks of files, and write those of a checkpoint."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from orchestrator.cli.app import main
from tests.support.stores import hand_row, rle, write_store


def command(capsys, *arguments):
    """Return the exit code of a command and what it printed."""
    with pytest.raises(SystemExit) as left:
        main([str(one) for one in arguments])
    said = capsys.readouterr()
    return left.value.code, said.out + said.err


def box(height, width, top, left, bottom, right):
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture(scope="module")
def hand(tmp_path_factory):
    """Return shards of two pictures, 20 x 30 and 24 x 16, with three sentences in val."""
    first = [box(20, 30, 0, 0, 10, 10), box(20, 30, 10, 0, 20, 30)]
    rows = [
        hand_row(first, [(1, ["left", "the left box"]), (2, ["bottom"])], image_id=7),
        hand_row([box(24, 16, 0, 0, 12, 8)], [(1, ["corner"])], image_id=3, split="testA"),
    ]
    store = write_store(tmp_path_factory.mktemp("hand") / "shards", rows)
    # (ref_id, sent_id) in REFER's order
    return SimpleNamespace(store=store, keys=[(71, 7010), (71, 7011), (72, 7020)])


def half(counts: bool = False):
    """Return RLEs whose I and U are (50, 100), (100, 100) and (0, 300), by hand."""
    masks = [box(20, 30, 0, 0, 5, 10), box(20, 30, 0, 0, 10, 10), box(20, 30, 0, 0, 0, 0)]
    if not counts:
        return [{"size": [20, 30], "counts": rle(mask)} for mask in masks]
    found = []
    for mask in masks:
        flat = mask.flatten(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff([0, *edges, len(flat)]).tolist()
        found.append({"size": [20, 30], "counts": [0, *runs] if flat[0] else runs})
    return found


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("form", ["rle", "runs", "order", "png", "png order"])
def test_scores_of_masks_by_hand(hand, tmp_path, capsys, form):
    masks = half(counts=form == "runs")
    if form in ("rle", "runs", "order"):
        keys = [{}] * 3
        if form != "order":
            keys = [{"ref_id": ref, "sent_id": sent} for ref, sent in hand.keys]
        lines = [key | {"mask": mask} for key, mask in zip(keys, masks, strict=True)]
        lines[2]["mask"] = None
        place = write_lines(tmp_path / "lisa.jsonl", lines if form == "order" else lines[::-1])
    else:
        place = tmp_path / "lisa"
        place.mkdir()
        top = [5, 10, 0]
        for k, (ref, sent) in enumerate(hand.keys):
            name = f"{ref}_{sent}.png" if form == "png" else f"{k + 9}.png"
            mask = box(20, 30, 0, 0, top[k], 10)
            value = 255 if k else 1
            Image.fromarray(mask.astype(np.uint8) * np.uint8(value)).save(place / name)
    out = tmp_path / "out"
    how = ["--predictions", place, "--data", hand.store.path, "--out", out, "--json"]
    code, text = command(capsys, "evaluate", *how)
    assert code == 0, text
    found = json.loads(text.splitlines()[-1])["val"]
    assert found["mIoU"] == pytest.approx((0.5 + 1 + 0) / 3, abs=1e-9)
    assert found["oIoU"] == 150 / 500 and found["P@0.5"] == 2 / 3 and found["P@0.6"] == 1 / 3
    about = json.loads((out / "about.json").read_text())
    assert (about["model"], about["protocol"], about["missing_as_empty"]) == (
        "lisa",
        "original",
        0,
    )
    assert set(json.loads((out / "breakdown.json").read_text())["val"]) >= {"size", "length"}


def refusals(tmp_path):
    """Yield what is wrong, the predictions, and what the sentence holds."""
    keys = [{"ref_id": r, "sent_id": s} for r, s in [(71, 7010), (71, 7011), (72, 7020)]]
    whole = [key | {"mask": mask} for key, mask in zip(keys, half(), strict=True)]

    def lines(name, these):
        return write_lines(tmp_path / f"{name}.jsonl", these)

    def folder(name, array=None):
        place = tmp_path / name
        place.mkdir()
        picture = Image.fromarray(np.zeros((20, 30), np.uint8) if array is None else array)
        for line in whole:
            picture.save(place / f"{line['ref_id']}_{line['sent_id']}.png")
        return place

    yield lines("few", whole[:1]), "no mask for 2 of 3 sentences (ref_id 71 sent_id 7011, ref_id 7"
    yield lines("twice", [*whole, whole[0]]), "two masks of ref_id 71 sent_id 7010"
    foreign = whole[0] | {"ref_id": 5}
    yield lines("foreign", [*whole, foreign]), "1 masks of sentences that"
    image = whole[0] | {"image_id": 3}
    yield lines("image", [image, *whole[1:]]), "line 1: image_id is 3, but ref_id 71 sent_id 7010"
    size = whole[1] | {"mask": {"size": [30, 20], "counts": [600]}}
    yield lines("size", [size, *whole]), "line 1: mask's RLE is for [30, 20]"
    short = whole[1] | {"mask": {"size": [20, 30], "counts": [5, 5]}}
    yield lines("short", [short, *whole]), "do not add up to 600 pixels"
    yield lines("order", [{"mask": None}] * 2), "holds 2 masks without ids, but the split has 3"
    yield lines("mixed", [{"mask": None}, *whole]), "with ids and masks without"
    yield lines("half", [{"ref_id": 71, "mask": None}]), "one of ref_id and sent_id"
    yield lines("id", [{"ref_id": -1, "sent_id": 1, "mask": None}]), "has the id -1"
    yield lines("word", ["mask"]), "line 1 is 'mask'"
    yield lines("empty", []), "holds no mask"
    (tmp_path / "cut.jsonl").write_text('{"ref_id": 71, "se')
    yield tmp_path / "cut.jsonl", "line 1, is not valid JSON"
    yield tmp_path / "none.jsonl", "it is missing"
    grey = (np.arange(600).reshape(20, 30) % 200).astype(np.uint8)
    yield folder("grey", grey), "several values from 0 to 199"
    yield folder("large", np.zeros((40, 60), np.uint8)), "is 60 x 40, but its image is 30 x 20"
    yield folder("colours", np.stack([grey, grey // 2, grey * 0], 2)), "several values"
    named = folder("named")
    Image.new("L", (30, 20)).save(named / "cat.png")
    yield named, "holds 'cat.png'"
    cut = folder("cut")
    (cut / "71_7010.png").write_bytes((cut / "71_7010.png").read_bytes()[:40])
    yield cut, "cannot be read as a picture"


def test_wrong_masks_end_in_one_sentence(hand, tmp_path, capsys):
    for place, said in refusals(tmp_path):
        out = tmp_path / "out"
        how = ["--predictions", place, "--data", hand.store.path, "--out", out]
        code, text = command(capsys, "evaluate", *how)
        last = text.strip().splitlines()[-1]
        assert code == 2 and last.startswith("error: ") and said in last, (place.name, text)
        assert "Traceback" not in text and not out.exists()


def test_missing_masks_count_as_empty_where_asked_for(hand, tmp_path, capsys):
    mask = half()[1]
    other = {"ref_id": 31, "sent_id": 3010, "mask": {"size": [24, 16], "counts": [384]}}
    line = {"ref_id": 71, "sent_id": 7011, "mask": mask}
    place = write_lines(tmp_path / "one.jsonl", [line, other])
    out = tmp_path / "out"
    how = ["--data", hand.store.path, "--out", out, "--missing-as-empty", "--name", "LISA"]
    code, text = command(capsys, "evaluate", "--predictions", place, *how)
    assert code == 0 and "2 of 3 sentences have no mask" in text and "1 masks of other" in text
    about = json.loads((out / "about.json").read_text())
    assert about["missing_as_empty"] == 2 and about["model"] == "LISA"
    assert json.loads((out / "metrics.json").read_text())["val"]["mIoU"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("form", ["masks", "masks.jsonl"])
def test_masks_of_a_checkpoint_score_as_it_does(data, tmp_path, capsys, monkeypatch, form):
    """In the original protocol the rows are the same bytes; `compare` pairs the two."""
    splits = ["--data", data.store.path, "--splits", "val,testA"]
    place = tmp_path / form
    shards = Path(data.store.path)
    monkeypatch.chdir(shards.parent)  # shards are looked for in the current folder first
    where = ["--data", shards.name, "--split", "val,testA", "--out", place]
    for _ in range(2):  # the second time over what the first one wrote
        code, text = command(capsys, "predict", data.checkpoint, *where)
        assert code == 0, text
    own, others = tmp_path / "own", tmp_path / "others"
    original = ["--protocol", "original", "--no-track", "--out", own]
    assert command(capsys, "evaluate", data.checkpoint, *splits, *original)[0] == 0
    code, text = command(capsys, "evaluate", "--predictions", place, *splits, "--out", others)
    assert code == 0, text
    for name in ("per_sentence.jsonl", "metrics.json", "breakdown.json", "intervals.json"):
        assert (own / name).read_bytes() == (others / name).read_bytes(), name
    rows = [json.loads(line) for line in (own / "per_sentence.jsonl").read_text().splitlines()]
    assert any(0 < row["intersection"] < row["union"] for row in rows)
    about = json.loads((others / "about.json").read_text())
    assert about["checkpoint"] == str(data.checkpoint)
    code, text = command(capsys, "compare", own, others, "--json")
    assert code == 0, text
    assert {row["difference"] for row in json.loads(text.splitlines()[-1])["comparisons"]} == {0}
    # at network size a mask that was resized to the picture and back is near, not equal
    square = ["--protocol", "square", "--size", "32", "--out", tmp_path / "square"]
    assert command(capsys, "evaluate", "--predictions", place, *splits, *square)[0] == 0
    assert command(capsys, "evaluate", data.checkpoint, *splits, "--out", tmp_path / "sq")[0] == 0
    near, true = (
        json.loads((tmp_path / name / "metrics.json").read_text())["val"]["mIoU"]
        for name in ("square", "sq")
    )
    assert near == pytest.approx(true, abs=0.02)
    assert command(capsys, "compare", tmp_path / "square", tmp_path / "sq")[0] == 0


def test_options_that_mean_nothing_are_refused(data, tmp_path, capsys):
    place = write_lines(tmp_path / "a.jsonl", [{"mask": None}])
    masks = ["--predictions", place, "--data", data.store.path, "--out", tmp_path / "out"]
    for arguments, said in (
        ([*masks, "--corrupt", "fog:3"], "--corrupt means nothing beside --predictions"),
        ([*masks, "--protocol", "square"], "add --size"),
        ([*masks, "--size", "32"], "add --protocol square"),
        ([data.checkpoint, *masks[2:], "--size", "32"], "--size means nothing beside a checkpoint"),
        (masks[2:], "nothing to evaluate was named"),
    ):
        code, text = command(capsys, "evaluate", *arguments)
        assert code == 2 and said in text, text
    for arguments, said in (
        ([], "--image and --text, or --data and --split"),
        (["--split", "val"], "give both --data and --split"),
        (
            ["--data", "shards", "--split", "val", "--max-megapixels", "7"],
            "--max-megapixels means nothing beside --split",
        ),
    ):
        code, text = command(capsys, "predict", data.checkpoint, *arguments)
        assert code == 2 and said in text, text
