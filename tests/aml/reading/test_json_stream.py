"""Test that reading arrays by element gives the values of json.loads, whatever the chunks."""

import json

import pytest
from hypothesis import example, given, strategies as st

from aml.errors import UserError
from aml.reading import json_stream, read_json
from tests.support.fuzzing import damaged, outcome

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trees")


@pytest.mark.parametrize("chunk", [1, 3, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_same_elements_as_from_the_whole(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    file = tmp_path / "tree.json"
    file.write_text(json.dumps(TREE, indent=indent, ensure_ascii=False) + "\n", "utf-8")
    found = list(json_stream.elements(file, {"annotations", "images", "absent"}, "a tree"))
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
        list(json_stream.elements(tmp_path / "bad.json", {"a"}, "a tree"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": [1]} 2', "something follows its end"),
        ('{"a": [1], "a": [2]}', "'a' is no key, or comes twice"),
        ('{"a": [' + "[" * 100 + "]" * 100 + "]}", "inside each other"),
        ('{"a": [' + "[" * 100_000, "inside each other"),
        ('{"a": [{"b": 1, "b": 2}]}', "the key 'b' twice"),
        (r'{"a": ["\ud800"]}', "half of a character"),
        ('{"a": [NaN]}', "NaN"),
        ('{"a": ["' + "x" * 3000 + '"]}', "more than 1000 characters"),
    ],
)
def test_elements_are_bounded_as_whole_texts_are(tmp_path, monkeypatch, text, says):
    monkeypatch.setattr(json_stream, "CHUNK", 100)
    monkeypatch.setattr(json_stream, "MAX_ELEMENT", 1000)
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=says):
        list(json_stream.elements(tmp_path / "bad.json", {"a"}, "a tree"))


@pytest.mark.fuzz
@given(damaged(json.dumps(TREE).encode()), st.sampled_from([1, 5, 1000]))
@example(b'{"annotations": [333333333333333333330.5]}', 5)
@example(b'{"annotations"\x00: [1]}', 1000)
def test_a_damaged_file_gives_the_elements_of_the_whole_or_is_refused(folder, content, chunk):
    (folder / "tree.json").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        streamed = outcome(
            lambda: list(json_stream.elements(folder / "tree.json", {"annotations"}, "a tree"))
        )
    whole = outcome(read_json, folder / "tree.json")
    if isinstance(whole, dict):
        held = whole.get("annotations")
        expected = [None, *held] if isinstance(held, list) else []
        assert [element for _, element in streamed] == expected
    else:
        assert isinstance(streamed, UserError)
