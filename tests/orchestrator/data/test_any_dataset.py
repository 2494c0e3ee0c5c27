"""Convert a data set of another name, with quirks of its own, and show what was found in it."""

import json
import zlib

import pytest
from PIL import Image

from aml.errors import UserError
from orchestrator.data import findings
from orchestrator.data.shard_file import write_file
from tests.aml.data.test_refer_quirks import Files, masks_only_in_refs, picture


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
