"""Read example pictures of one trial of each arm, epoch by epoch, small enough for one page."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aml.errors import Unreadable
from aml.reading import decode_as, open_picture, read_picture
from orchestrator import storage
from orchestrator.reporting import numbers
from orchestrator.reporting.numbers import Trial

MOST_BYTES = 1_400_000
"""Bytes of all pictures of a page; epochs between the first and the last are left out for it."""

HIGHEST = 4_000
"""Height in pixels below which a picture is cut."""

QUALITY = 80
"""Quality of WebP, out of 100."""

STAGES = {"confirm": "confirmation", "search": "a search trial: none of this arm is confirmed"}


@dataclass(frozen=True)
class ArmPictures:
    """Pictures of one trial of an arm."""

    arm: str
    text: str
    """Which trial this is, in words."""
    epochs: list[str]
    """Names of the epochs, the last one last."""
    urls: list[str]
    """data: URL of the picture of each epoch."""


def arm_pictures(folder: Path, trials: list[Trial]) -> tuple[list[ArmPictures], list[str]]:
    """Return the pictures of one trial of each arm, and the arms without a readable picture.

    Of an arm's trials those come first that are confirmed, then those that are done.

    Args:
        folder: Folder of the run.
        trials: Trials of the run.
    """
    chosen: dict[str, tuple[Trial, list[Path]]] = {}
    arms = numbers.arms_of(trials, {})
    for arm in arms:
        members = [t for t in trials if t["arm"] == arm and t["state"] != "failed"]
        members.sort(key=_preference)
        found = ((trial, _files(folder, trial)) for trial in members)
        first = next(((trial, files) for trial, files in found if files), None)
        if first:
            chosen[arm] = first
    last = {arm: _webp(files[-1]) for arm, (_, files) in chosen.items()}
    size = sum(len(content) for content in last.values() if content)
    epochs = max(1, MOST_BYTES // max(size, 1))
    shown = [
        _pictures(arm, trial, _spread(files, epochs), content)
        for arm, (trial, files) in chosen.items()
        if (content := last[arm])
    ]
    return shown, [arm for arm in arms if not last.get(arm)]


def _preference(trial: Trial) -> tuple[bool, bool, float]:
    return trial["stage"] != "confirm", trial["state"] != "done", numbers.number(trial.get("seed"))


def _files(folder: Path, trial: Trial) -> list[Path]:
    """Return a trial's pictures by epoch, downloaded if the run has a bucket."""
    place = folder
    if trial["stage"] != "train":
        place = folder / "trials" / Path(trial["trial"]).name
    # a download that fails costs the page one picture, nothing else
    storage.try_download(place, wanted=storage.without_checkpoints, wait=False)
    return sorted((place / "pictures").glob("*.png"))


def _spread(files: Sequence[Path], most: int) -> list[Path]:
    """Return at most so many files at equal distances, the last one always, the first if it can."""
    if len(files) <= most:
        return list(files)
    if most == 1:
        return [files[-1]]
    return [files[round(i * (len(files) - 1) / (most - 1))] for i in range(most)]


def _pictures(arm: str, trial: Trial, files: list[Path], last: bytes) -> ArmPictures:
    """Return the readable pictures of a trial; the last one is encoded already."""
    encoded = [(_epoch(path), _webp(path)) for path in files[:-1]]
    readable = [(name, content) for name, content in encoded if content]
    readable.append((_epoch(files[-1]), last))
    seed = f"seed {trial['seed']}" if trial.get("seed", "") != "" else ""
    parts = [trial["trial"], STAGES.get(trial["stage"]), seed]
    return ArmPictures(
        arm=arm,
        text=", ".join(part for part in parts if part),
        epochs=[name for name, _ in readable],
        urls=[
            f"data:image/webp;base64,{base64.b64encode(content).decode()}"
            for _, content in readable
        ],
    )


def _epoch(path: Path) -> str:
    """Return the epoch of a file epoch-0008.png as "8"; the name of any other file."""
    found = re.fullmatch(r"epoch-0*(\d+)", path.stem)
    return found[1] if found else path.stem


def _webp(path: Path) -> bytes | None:
    """Return a picture as WebP, cut at `HIGHEST`; None if it cannot be read."""
    try:
        picture = decode_as(open_picture(read_picture(path), str(path)), str(path))
    except Unreadable:
        return None
    picture = picture.crop((0, 0, picture.width, min(picture.height, HIGHEST)))
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=QUALITY)
    return content.getvalue()
