"""Test that pickles give plain data or one sentence, in bounded time and memory."""

import pickle
import resource
import struct

import pytest
from hypothesis import given, strategies as st

from aml.errors import UserError
from aml.reading import pickles, read_pickle
from tests.support.fuzzing import VALUES, damaged, outcome

REF = {
    "ref_id": 7,
    "split": "val",
    "sentences": [{"sent_id": 2**40, "sent": "café", "tokens": ["café"]}],
    "other": (None, True, False, 1.5, b"\x80", -1, {}, [], ()),
}


def shared(levels):
    """Return lists that hold a list twice, so that 2**levels are reached."""
    value = []
    for _ in range(levels):
        value = [value, value]
    return value


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


REFUSED = {
    "lists that share lists": (pickle.dumps(shared(60), 2), "counts as often as it is named"),
    "texts that are shared": (pickle.dumps(["x" * 10**6] * 10**4, 2), "counts as often"),
    "a list inside itself": (b"\x80\x02]q\x00h\x00a.", "inside each other"),
    "deep lists": (pickle.dumps(nested(100), 2), "inside each other"),
    "a nested tuple as key": (b"}" + b")" + b"\x85" * 10**5 + b"Ns.", "keys are texts"),
    "numbers as keys": (pickle.dumps({1: 2}, 2), "keys are texts"),
    "a number of many digits": (pickle.dumps([10**5000], 2), "a whole number of about 5000 digits"),
    "a number written out": (b"I" + b"9" * 10**5 + b"\n.", "cannot be read"),
    "a set": (pickle.dumps([{1}], 4), "makes no plain data"),
    "an object": (pickle.dumps([range(3)], 2), r"the pickle names __builtin__\.xrange"),
    "a registered class": (b"\x82\x01.", "makes no plain data"),
    "a name of many letters": (b"c" + b"a" * 10**6 + b"\nb\n.", "the pickle names aaa"),
    "bytes that are not there": (b"\x8e" + struct.pack("<Q", 2**62) + b".", "cannot be read"),
    "another call": (b"cos\nsystem\n(Vtouch x\ntR.", r"the pickle names os\.system"),
    "another codec": (b"c_codecs\nencode\n(Vaa\nVrot13\ntR.", "the pickle calls a function"),
    "a call of a text": (b"Vaa\n(Vaa\nVlatin1\ntR.", "the pickle calls a function"),
    "a function as data": (b"(lc_codecs\nencode\na.", "the pickle names a function"),
    "many bytes of one text": (
        b"(l(V" + b"x" * 10**4 + b"\nVlatin1\ntp0\n0" + b"c_codecs\nencode\ng0\nRa" * 10**3 + b".",
        "bytes of more than 10000 letters",
    ),
    "many marks": (b"(" * 10**5, "ends early"),
}  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("pickles") / "refs.p"


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(file, what, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_VALUES", 10**5)
    if what == "many bytes of one text":
        monkeypatch.setattr(pickles, "MAX_LETTERS", 10**4)
    content, says = REFUSED[what]
    file.write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        read_pickle(file)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_is_read(file, protocol):
    file.write_bytes(pickle.dumps([REF, REF], protocol))
    assert read_pickle(file) == [REF, REF]


def test_a_place_in_the_memo_takes_no_memory(file):
    file.write_bytes(b"\x80\x02]r" + b"\xff" * 4 + b".")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_pickle(file) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.fuzz
@given(st.integers(0, 5).flatmap(lambda p: damaged(pickle.dumps([REF] * 3, p))))
def test_a_damaged_pickle_is_read_or_refused(file, content):
    file.write_bytes(content)
    outcome(read_pickle, file)


@pytest.mark.fuzz
@given(VALUES, st.integers(3, 5))
def test_any_plain_value_is_read_or_refused(file, value, protocol):
    content = pickle.dumps(value, protocol)
    file.write_bytes(content)
    found = outcome(read_pickle, file)
    assert isinstance(found, UserError) or repr(found) == repr(value)
