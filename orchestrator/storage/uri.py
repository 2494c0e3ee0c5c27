"""Addresses of buckets: recognise, join, refuse those that hold keys."""

from pathlib import Path

from aml.errors import UserError

ADDRESS = "bucket.txt"

"""In a working root: the address of its bucket."""


def is_address(text: str | Path | None) -> bool:
    return str(text or "").startswith("s3://")


def join_uri(uri: str, *names: str) -> str:
    """A place below an address, before its ?query."""
    base, mark, query = uri.partition("?")
    return "/".join([base.rstrip("/"), *(n for n in names if n not in ("", "."))]) + mark + query


def refuse_keys(uri: str) -> None:
    """UserError, without repeating them, where an address holds keys."""
    place = uri.partition("://")[2].partition("/")[0]
    if "@" in place:
        raise UserError(
            f"the address of {place.rpartition('@')[2]} holds keys, and addresses are logged; export AWS_ACCESS_KEY_ID and the like instead"
        )
