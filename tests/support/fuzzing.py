"""Generate damaged inputs for property tests, and set how many a run tries.

`make test` tries a few, the same each time. `make fuzz` tries AMLRIS_FUZZ_EXAMPLES of each, from
the seed that it is given (SEED), and keeps what failed in build/fuzz for the next run.
"""

import copy
import os
from pathlib import Path

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from aml.errors import UserError

COMMON = {
    "deadline": None,  # on a busy machine any example may be slow; pytest's timeout ends a hang
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
}

settings.register_profile("quick", max_examples=25, derandomize=True, database=None, **COMMON)
settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("AMLRIS_FUZZ_EXAMPLES", "2000")),
    database=DirectoryBasedExampleDatabase(Path(__file__).parents[2] / "build" / "fuzz"),
    **COMMON,
)
settings.load_profile("fuzz" if "AMLRIS_FUZZ_EXAMPLES" in os.environ else "quick")

SCALARS = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1, 7.0, -0.0, 1e300, -1e8, 2**31, 2**63, -(2**63), 10**30]
        + [float("nan"), float("inf"), "", " ", "...", "\0", "\ud800", "x" * 5000, "[", "{}", "1"]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
)
"""Values of the kinds that a file may hold in place of others."""

VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
"""Scalars, and lists and dicts of them."""


@st.composite
def replaced(draw: st.DrawFn, valid: object, values: st.SearchStrategy = VALUES) -> object:
    """Return a copy of lists and dicts in which one to three places are replaced or gone."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        holder = [value]
        key: object = 0
        inner = value
        # go down from the outermost container, at each level maybe
        while isinstance(inner, list | dict) and inner and draw(st.integers(0, 4)):
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            holder, key = inner, draw(st.sampled_from(keys))
            inner = inner[key]
        if draw(st.booleans()) or holder == [value]:
            holder[key] = draw(values)
            value = holder[0] if inner is value else value
        else:
            del holder[key]
    return value


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """Return bytes in which some are flipped, cut out, repeated or put in."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        match draw(st.sampled_from(["flip", "cut", "end", "repeat", "put"])):
            case "flip" if start < len(content):
                content[start] ^= draw(st.integers(1, 255))
            case "cut":
                del content[start:end]
            case "end":
                del content[start:]
            case "repeat":
                content[start:end] = content[start:end] * draw(st.integers(0, 50))
            case _:
                content[start:start] = draw(st.binary(min_size=1, max_size=8))
    return bytes(content)


def outcome(read, *arguments, **options):
    """Return what the reader returns, or the UserError that it raises: one sentence of some length.

    Any other exception fails the test.
    """
    try:
        return read(*arguments, **options)
    except UserError as error:
        text = str(error)
        assert 0 < len(text) < 4000 and "\0" not in text, text[:4000]
        text.encode()
        return error
