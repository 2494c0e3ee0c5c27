"""Say what the reader of a data set found and what it left out."""

from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from aml.errors import UserError
from aml.reading import problem_of
from orchestrator.config import DataConfig
from orchestrator.data.shard_file import TURNED


class Found(TypedDict, total=False):
    """Entry `found` of a manifest: the fields of aml.data.Findings, and kinds of pictures."""

    files: list[str]
    masks: dict[str, int]
    left_out: dict[str, int]
    pictures: dict[str, int]


FOUND = TypeAdapter(Found)


def left_out(manifest: dict[str, Any]) -> dict[str, int]:
    """Return what shards leave out of the annotations, as {reason: how many}.

    Args:
        manifest: Manifest of the shards; an older one tells pictures alone.

    Raises:
        UserError: The manifest is damaged.
    """
    reasons = dict(_found(manifest).get("left_out", {}))
    if manifest.get("skipped"):
        reasons["pictures that cannot be used"] = len(manifest["skipped"])
    return reasons


def found_lines(manifest: dict[str, Any]) -> list[str]:
    """Return what a data set's reader found and left out, as lines for a person.

    Args:
        manifest: Manifest of the shards; of an older one less is known.

    Raises:
        UserError: The manifest is damaged.
    """
    found = _found(manifest)
    pictures = dict(found.get("pictures", {}))
    turned = pictures.pop(TURNED, 0)
    parts = [
        ", ".join(found.get("files", [])),
        ", ".join(f"{n} refs with a mask of {w}" for w, n in found.get("masks", {}).items()),
        ", ".join(f"{n} {kind} pictures" for kind, n in pictures.items()),
    ]
    lines = [f"found: {'; '.join(filter(None, parts))}"] if any(parts) else []
    if turned:
        lines.append(
            f"not turned: {turned} pictures that EXIF turns when they are shown; masks lie on the "
            "file's own pixels"
        )
    return lines + [f"left out: {n} {reason}" for reason, n in left_out(manifest).items()]


def scored_sentences(settings: DataConfig, found: dict[str, Any]) -> str:
    """Return which sentences validate: "the first 800 of 2,208 sentences of val", or all of them.

    Args:
        settings: The settings of the data.
        found: The data set a run's state describes, with counts by split; an older one may lack
            them.
    """
    split, limit = settings.val_split, settings.val_limit
    total = (found.get("splits") or {}).get(split, {}).get("sentences")
    if total is None:
        return f"the first {limit:,} sentences of {split}" if limit else f"all sentences of {split}"
    if limit and limit < total:
        return f"the first {limit:,} of {total:,} sentences of {split}"
    return f"all {total:,} sentences of {split}"


def _found(manifest: dict[str, Any]) -> Found:
    found = manifest.get("found", {})
    if problem := problem_of(FOUND, found):
        raise UserError(f"the shards' marker is damaged (found: {problem}); write them again")
    return found
