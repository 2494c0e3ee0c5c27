"""Test that reading arrays by element gives the values of json.loads, whatever the chunks."""

import json

import pytest

from aml.data import json_stream

TREE = {
    "info": {"text": 'a "quoted" ] } é', "list": [1, [2, {"x": []}]]},
    "annotations": [
        {"id": 12345, "poly": [[1.25, -3e5]]},
        678,
        "nine",
        [],
        None,
        {"deep": {"annotations": [1]}},
    ],
    "n": -12.5,
    "images": [],
    "last": [1, 2],
}


@pytest.mark.parametrize("chunk", [1, 3, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_same_elements_as_from_the_whole(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    file = tmp_path / "tree.json"
    file.write_text(json.dumps(TREE, indent=indent, ensure_ascii=False) + "\n", "utf-8")
    found = list(json_stream.elements(file, {"annotations", "images", "absent"}))
    assert found == [
        ("annotations", None),
        *(("annotations", e) for e in TREE["annotations"]),
        ("images", None),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"a": [1, 2',
        '{"a": [1 2]}',
        '{"a": [1,]}',
        '{"a": [1]',
        '{"a" [1]}',
        '{"a": [nope]}',
        '{"a": [1],}',
    ],
)
def test_what_is_not_valid_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.setattr(json_stream, "CHUNK", 2)
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError):
        list(json_stream.elements(tmp_path / "bad.json", {"a"}))
