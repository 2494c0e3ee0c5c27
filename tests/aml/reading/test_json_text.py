"""Test that JSON is parsed strictly and within bounds."""

import json

import pytest
from hypothesis import given, strategies as st

from aml.errors import UserError
from aml.reading import parse_json, read_json
from tests.support.fuzzing import VALUES, damaged, outcome

TREE = {"a": [1, -2.5e3, None, True, "é 😀"], "b": {"[{": ["\\", '"[']}}

REFUSED = {
    "an object without an end": ('{"a": 1', "line 1"),
    "something after the end": ("[1] 2", "Extra data"),
    "a key twice": ('[{"a": 1, "a": 2}]', "the key 'a' twice"),
    "no number": ("[NaN]", "NaN is no number"),
    "a number that is infinite": ("1e999", "too large"),
    "an integer of many digits": ("9" * 21, "has 21 digits"),
    "an integer of very many digits": ("9" * 100_000, "has 100000 digits"),
    "half a character": (r'["\ud800"]', "half of a character"),
    "deep lists": ("[" * 100_000 + "]" * 100_000, "inside each other"),
    "deep objects": ('{"a":' * 65 + "1" + "}" * 65, "inside each other"),
    "deep lists beside texts of brackets": (r'["]]\"]", ' + "[" * 64 + "]" * 65, "inside each"),
    "another encoding": ("[1]".encode("utf-16"), "UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what):
    text, says = REFUSED[what]
    with pytest.raises(UserError, match=f"^it is not .*{says}"):
        parse_json(text, "it")


def test_what_is_read(tmp_path):
    (tmp_path / "tree.json").write_text("\ufeff" + json.dumps(TREE), "utf-8")
    assert read_json(tmp_path / "tree.json") == TREE
    assert parse_json("[" * 64 + "]" * 64, "it") and parse_json(str(2**64 - 1), "it") == 2**64 - 1
    assert parse_json("[-Infinity]", "it", nan=True) == [float("-inf")]


@pytest.mark.fuzz
@given(damaged(json.dumps(TREE).encode()))
def test_damaged_text_is_read_as_json_reads_it_or_refused(content):
    found = outcome(parse_json, content, "it")
    assert isinstance(found, UserError) or found == json.loads(content)


@pytest.mark.fuzz
@given(VALUES, st.booleans())
def test_any_value_is_read_or_refused(value, ascii_alone):
    try:
        text = json.dumps(value, ensure_ascii=ascii_alone)
    except TypeError:  # bytes
        return
    found = outcome(parse_json, text, "it")
    assert isinstance(found, UserError) or found == json.loads(text)
