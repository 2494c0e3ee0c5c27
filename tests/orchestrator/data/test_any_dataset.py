"""Convert a data set of another name, with quirks of its own, and show what was found in it."""

import json
import pickle
import zlib

import numpy as np
import pytest
from PIL import Image

from aml.data import rasterise, read_refer, referent
from aml.errors import UserError
from aml.reading import read_json, read_pickle
from aml.synthetic import generate_dataset
from orchestrator.data import findings
from orchestrator.data.shard_file import write_file
from tests.aml.data.test_refer_quirks import Files, compressed, masks_only_in_refs, picture, runs


def test_a_data_set_of_any_name_is_converted_shown_and_accounted_for(tmp_path, ray_session):
    files = Files(tmp_path)
    masks_only_in_refs(files)
    files.refs.append(files.ref(2, 77, 1, "what nobody annotated"))
    files.names = {1: "a.png", 2: "b.tif"}
    exif = Image.Exif()
    exif[0x0112] = 3
    picture(files.images / "test" / "a.png", exif=exif)
    picture(files.images / "test" / "b.tif")
    files.write()
    out = tmp_path / "shards"
    command = ["shard", "--refer-root", str(tmp_path), "--images", str(files.images)]
    command += ["--dataset", "drones", "--split-by", "own", "--out", str(out), "--json"]
    code, text = ray_session(command)
    assert code == 2 and "ref 2 of drones (own) names annotation 77" in text
    code, text = ray_session([*command, "--skip-unreadable"])
    assert code == 0, text
    told = json.loads(text.splitlines()[-1])
    assert told["splits"] == {"test": {"refs": 2, "sentences": 3, "images": 2}}
    assert told["found"] == {
        "files": ["refs(own).p", "instances.json"],
        "masks": {"refs": 2},
        "pictures": {"PNG": 1, "TIFF": 1, "turned by EXIF": 1},
    }
    assert told["left_out"] == {"refs whose annotation is missing": 1}
    assert "left out: 1 refs whose annotation is missing" in text
    assert "not turned: 1 pictures that EXIF turns" in text and "published" not in text
    page = tmp_path / "page.html"
    code, text = ray_session(["data", "show", str(out), "--split", "test", "--out", str(page)])
    assert code == 0, text
    assert "1 refs whose annotation is missing" in page.read_text("utf-8")
    code, text = ray_session([*command[:5], "--out", str(out), "--dataset", "drone"])
    assert code == 2 and "folders with refs are drones (own)" in text


def test_a_picture_annotated_as_it_is_shown_is_refused_with_its_reason(tmp_path):
    files = Files(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    files.save = lambda path: Image.new("RGB", (12, 14)).save(path, exif=exif)
    files.images.mkdir()
    for name in files.names.values():
        files.save(files.images / name)
    row = files.read()[0]
    meta = zlib.compress(json.dumps({k: v for k, v in row.items() if k != "path"}).encode())
    note = write_file(None, "part", [(row["path"], meta)], False)
    assert "EXIF turns it when it is shown, and masks must lie on the file" in note["errors"][0]


@pytest.mark.parametrize("found", [5, {"masks": 3}, {"files": [1]}])
def test_a_damaged_marker_is_refused(found):
    with pytest.raises(UserError, match="the shards' marker is damaged .found"):
        findings.found_lines({"found": found})
    assert findings.found_lines({"skipped": ["x"]}) == ["left out: 1 pictures that cannot be used"]


def rewrite(plain, root):
    """Write a generated RefCOCO again as "drones", with every quirk at once; return its images.

    Splits are train and test alone.
    """
    refs = read_pickle(plain / "refcoco" / "refs(unc).p", "refs")
    instances = read_json(plain / "refcoco" / "instances.json")
    rows = read_refer(plain, plain / "images", "refcoco", "unc")
    folder = root / "drones"
    folder.mkdir(parents=True)
    masks = {
        o["ann_id"]: rasterise(referent(row, {"ann_id": o["ann_id"]}), row["height"], row["width"])
        for row in rows
        for o in row["objects"]
    }
    kinds = [
        lambda mask: {"size": list(mask.shape), "counts": runs(mask)},
        lambda mask: {"size": list(mask.shape), "counts": compressed(mask).decode()},
        lambda mask: {"size": list(mask.shape), "counts": str(compressed(mask))},
        lambda mask: [{"size": list(mask.shape), "counts": compressed(mask).decode()}],
    ]
    for a in instances["annotations"]:
        a["segmentation"] = kinds[a["id"] % 4](masks[a["id"]])
    category = {a["id"]: a["category_id"] for a in instances["annotations"]}
    split_of = {}
    own = set()
    for k, ref in enumerate(refs):
        ref["split"] = "train" if ref["split"] == "train" else "test"
        split_of[ref["image_id"]] = ref["split"]
        if k % 5 == 0:
            mask = masks[ref["ann_id"]]
            ref["segmentation"] = {"size": mask.shape, "counts": compressed(mask)}
            ref["category_id"] = category[ref["ann_id"]]
            own.add(ref["ann_id"])
        if k % 3 == 0:
            del ref["sent_ids"]
    refs[1]["sentences"].append(dict(refs[1]["sentences"][0]))
    twin = refs[2] | {"ref_id": 90_000, "sentences": [{"sent": "that one there", "raw": "that"}]}
    twin.pop("sent_ids", None)
    refs.append(twin)
    kept = [a for a in instances["annotations"] if a["id"] not in own or a["id"] == twin["ann_id"]]
    kept.append(kept[0] | {"id": 80_000, "image_id": 70_000})
    for k, record in enumerate(instances["images"]):
        name = record["file_name"]
        record["file_name"] = [record["id"], str(record["id"])][k % 2]
        place = root / "pictures" / split_of.get(record["id"], "train")
        place.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 3
        with Image.open(plain / "images" / "train2014" / name) as opened:
            ending, how = [("png", {}), ("tif", {}), ("png", {"exif": exif})][k % 3]
            opened.save(place / f"{record['id']}.{ending}", **how)
    (folder / "refs(own).p").write_bytes(pickle.dumps(refs, 2))
    half = {record["id"] for record in instances["images"][::2]}
    for file, chosen in (("instances_a.json", True), ("instances_b.json", False)):
        content = {
            "images": [i for i in instances["images"] if (i["id"] in half) == chosen],
            "annotations": [a for a in kept if (a["image_id"] in half) == chosen],
        }
        (folder / file).write_text(json.dumps(content))
    (folder / "categories.json").write_text(json.dumps(instances["categories"]))
    return root / "pictures"


def test_a_data_set_with_every_quirk_is_trained_on_and_scored(tmp_path, monkeypatch, ray_session):
    monkeypatch.setenv("AMLRIS_HOME", str(tmp_path / "home"))
    plain = tmp_path / "plain"
    generate_dataset(plain, "refcoco", images=40, size=48, seed=0)
    images = rewrite(plain, tmp_path / "refer")
    out = str(tmp_path / "shards")
    command = ["shard", "--refer-root", str(tmp_path / "refer"), "--images", str(images)]
    command += ["--dataset", "drones", "--split-by", "own", "--out", out, "--json"]
    code, text = ray_session(command)
    assert code == 0, text
    told = json.loads(text.splitlines()[-1])
    assert told["left_out"] == {
        "annotations whose image is not in the list": 1,
        "sentences that a ref gives twice": 1,
    }
    assert set(told["found"]["pictures"]) == {"PNG", "TIFF", "turned by EXIF"}
    assert set(told["found"]["masks"]) == {"refs", "instances"}
    wanted = meanings(read_refer(plain, plain / "images", "refcoco", "unc"))
    got = meanings(read_refer(tmp_path / "refer", images, "drones", "own"))
    assert got.pop((90_000, "that one there")).any()
    assert got.keys() == wanted.keys()
    assert all(np.array_equal(got[key], mask) for key, mask in wanted.items())
    sentences = {name: split["sentences"] for name, split in told["splits"].items()}
    assert sum(sentences.values()) == len(wanted) + 1

    code, text = ray_session(["data", "show", out, "--split", "train", "--out", f"{out}.html"])
    assert code == 0, text
    file = tmp_path / "drones.yaml"
    file.write_text(
        f"{{name: drones, data: {{train: {out}, val_split: test, size: 32}}, "
        "model: {name: small, width: 16, stem: 8, heads: 2}, tracking: {uri: none}, "
        "aml: {preset: calibrated, tau: 0.4, rho: 0.5}, train: {epochs: 2, batch: 16}, "
        "evaluate: {probe: 8, pictures: 2}}"
    )
    code, text = ray_session(["train", str(file)])
    assert code == 0, text
    scores = tmp_path / "scores"
    how = ["--data", out, "--splits", "test", "--out", str(scores)]
    code, text = ray_session(["evaluate", "drones", *how])
    assert code == 0, text
    assert read_json(scores / "metrics.json")["test"]["n"] == sentences["test"]


def meanings(rows):
    """Return {(ref_id, sentence): mask}."""
    return {
        (ref["ref_id"], s["sent"]): rasterise(referent(row, ref), row["height"], row["width"])
        for row in rows
        for ref in row["refs"]
        for s in ref["sentences"]
    }
