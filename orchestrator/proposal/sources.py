"""Find data that can be trained on below a folder: REFER folders, tables and shards.

A REFER folder holds refs(SPLIT_BY).p or grefs(SPLIT_BY).json beside instances*.json; a table is a
.csv, .jsonl or .ndjson file with the columns of `shard --table`; shards hold _COMPLETE.json.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from aml.data import load_grefs, load_refs, peek_table
from aml.errors import UserError
from aml.reading import SUFFIXES, open_picture, read_picture
from orchestrator.data import COMPLETE_MARKER, picture_places, read_manifest, read_rows
from orchestrator.storage import Filesystem

MAX_FOLDERS = 5_000
"""Folders that are looked into at most."""

MAX_DEPTH = 5
"""Levels of folders below the first that are looked into."""

SAMPLE = 12
"""Pictures whose size is looked at."""

REFS = re.compile(r"g?refs\((?P<split_by>[^()]+)\)\.(?:p|json)")
TABLES = (".csv", ".jsonl", ".ndjson")
SPLIT_BYS = ("unc", "umd", "google")
"""Splittings that are taken before others of the same data set."""

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "validation", "valid", "dev")
PICTURES_WANTED = "PICTURES"
"""Stands in a command for a folder of pictures that was not found."""


@dataclass(frozen=True)
class DataSource:
    """Data that an experiment can train on."""

    what: str
    """What it is and where, for a person."""
    shard: list[str] = field(default_factory=list)
    """Arguments of `shard` that convert it, --out left out; empty where it is shards already."""
    shards: str = ""
    """The shards as data.train names them; empty where they are still to be made."""
    splits: dict[str, tuple[int, int]] = field(default_factory=dict)
    """For each split the number of referents (of a table: lines) and of sentences."""
    side: int | None = None
    """Median of the longer sides of some pictures, in pixels; None where it is not known."""
    notes: tuple[str, ...] = ()

    @property
    def train_split(self) -> str:
        """The split to train on; empty where there is none."""
        return next((name for name in TRAIN_NAMES if name in self.splits), "")

    @property
    def val_split(self) -> str:
        """The split that validates; empty where there is none."""
        tests = sorted(name for name in self.splits if name.startswith("test"))
        return next((name for name in (*VAL_NAMES, *tests) if name in self.splits), "")

    @property
    def problem(self) -> str:
        """Why nothing can be trained on it; empty where something can."""
        has = f"its splits are {', '.join(sorted(self.splits)) or 'none'}"
        if not self.train_split:
            return f"{self.what} has no split train ({has})"
        return "" if self.val_split else f"{self.what} has no split that could validate ({has})"


@dataclass
class _Found:
    """Files of interest below a folder."""

    refer: list[tuple[Path, str]] = field(default_factory=list)
    """Folder and split_by of each refs file that lies beside instances."""
    tables: list[Path] = field(default_factory=list)
    shards: list[Path] = field(default_factory=list)
    pictures: dict[Path, list[str]] = field(default_factory=dict)
    """Names of the picture files of each folder that has some."""


def find_sources(folder: Path, root: Path) -> list[DataSource]:
    """Return the data below a folder, those first that a person most likely means.

    REFER folders come first, then tables, then shards; the storage root is left out.

    Args:
        folder: Where to look.
        root: The storage root, whose own shards and generated scenes do not count.

    Raises:
        UserError: The folder is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give the folder that your data are in")
    found = _look(folder, root)
    sources = [_refer(place, split_by, found) for place, split_by in found.refer]
    sources += [_table(path, found) for path in found.tables]
    sources += [_shards(path, root) for path in found.shards]
    return [source for source in sources if source is not None]


def _look(folder: Path, root: Path) -> _Found:
    """Return the files of interest below a folder."""
    found = _Found()
    for place, names in _folders(folder, root):
        if COMPLETE_MARKER in names:
            found.shards.append(place)
            continue
        has_instances = any(re.fullmatch(r"instances.*\.json", name) for name in names)
        split_bys = [match["split_by"] for name in names if (match := REFS.fullmatch(name))]
        if has_instances and split_bys:
            known = [name for name in SPLIT_BYS if name in split_bys]
            found.refer.append((place, (known or sorted(split_bys))[0]))
        found.tables += [place / name for name in names if name.lower().endswith(TABLES)]
        if pictures := [name for name in names if name.lower().endswith(SUFFIXES)]:
            found.pictures[place] = pictures
    return found


def _folders(folder: Path, root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield folders, by breadth, each with the sorted names of its files."""
    level = [folder]
    known = {os.path.realpath(root)} - {os.path.realpath(folder)}
    count = 0
    for depth in range(MAX_DEPTH + 1):
        below: list[Path] = []
        for place in level:
            real = os.path.realpath(place)
            if real in known or count >= MAX_FOLDERS:
                continue
            known.add(real)
            count += 1
            try:
                entries = sorted(os.scandir(place), key=lambda entry: entry.name)
            except OSError:
                continue
            yield place, [entry.name for entry in entries if entry.is_file()]
            if depth < MAX_DEPTH:
                below += [
                    Path(entry.path)
                    for entry in entries
                    if not entry.name.startswith((".", "__")) and entry.is_dir()
                ]
        level = below


def _refer(place: Path, split_by: str, found: _Found) -> DataSource | None:
    """Return the source of a REFER folder; None where its refs cannot be read."""
    pickle = place / f"refs({split_by}).p"
    try:
        if pickle.is_file():
            refs = load_refs(pickle, skip_unusable=True)
        else:
            refs = load_grefs(place / f"grefs({split_by}).json", skip_unusable=True)
    except UserError:
        return None
    counts: Counter = Counter()
    sentences: Counter = Counter()
    for ref in refs:
        counts[ref["split"]] += 1
        sentences[ref["split"]] += len(ref["sentences"])
    images = _pictures_folder(place.parent, found)
    command = ["--refer-root", str(place.parent), "--images", str(images or PICTURES_WANTED)]
    source = DataSource(
        f"{place.name} ({split_by}) in {place.parent}",
        [*command, "--dataset", place.name, "--split-by", split_by],
        splits={name: (counts[name], sentences[name]) for name in sorted(counts)},
        side=_typical_side(images, found) if images else None,
    )
    if images is None:
        note = f"no pictures were found: put the folder that has them in place of {PICTURES_WANTED}"
        return replace(source, notes=(note,))
    return source


def _table(path: Path, found: _Found) -> DataSource | None:
    """Return the source of a table; None for a file that is none."""
    try:
        counts, images = peek_table(path, SAMPLE)
    except UserError:
        return None
    command = ["--table", str(path)]
    folder: Path | None = path.parent
    notes: tuple[str, ...] = ()
    if images and not (path.parent / images[0]).is_file():
        folder = next((one for one in found.pictures if (one / images[0]).is_file()), None)
        command += ["--images", str(folder or PICTURES_WANTED)]
        if folder is None:
            notes = (f"{images[0]} was not found: put its folder in place of {PICTURES_WANTED}",)
    return DataSource(
        f"table {path}",
        command,
        splits={name: (count, count) for name, count in sorted(counts.items())},
        side=_median_side([folder / name for name in images]) if folder else None,
        notes=notes,
    )


def _shards(path: Path, root: Path) -> DataSource | None:
    """Return the source of a folder of shards; None where they are incomplete."""
    store = Filesystem(path)
    try:
        manifest = read_manifest(store)
        splits = {
            str(name): (int(count["refs"]), int(count["sentences"]))
            for name, count in manifest["splits"].items()
        }
        about = f"shards of {manifest['dataset']} ({manifest['split_by']}) in {path}"
        rows = read_rows(store, picture_places(store, list(splits))[:SAMPLE])
        side = _median([max(open_picture(row["jpeg"], str(path)).size) for row in rows])
    except (UserError, AttributeError, KeyError, TypeError, ValueError):
        return None
    inside = path.absolute().is_relative_to(root)
    place = path.absolute().relative_to(root) if inside else path.absolute()
    return DataSource(about, shards=str(place), splits=splits, side=side)


def _pictures_folder(refer_root: Path, found: _Found) -> Path | None:
    """Return the folder to search for a data set's pictures; None where there are none."""
    beside = refer_root / "images"
    if any(place.is_relative_to(beside) for place in found.pictures):
        return beside
    return max(found.pictures, key=lambda place: len(found.pictures[place]), default=None)


def _typical_side(images: Path, found: _Found) -> int | None:
    """Return the median of the longer sides of some pictures below a folder, in pixels."""
    below = [
        place / name
        for place, names in found.pictures.items()
        if place.is_relative_to(images)
        for name in names[:SAMPLE]
    ]
    return _median_side(below[:SAMPLE])


def _median_side(files: list[Path]) -> int | None:
    """Return the median of the longer sides of pictures, in pixels; None where none is read."""
    sides = []
    for file in files:
        try:
            sides.append(max(open_picture(read_picture(file), str(file)).size))
        except UserError:
            continue
    return _median(sides)


def _median(sides: list[int]) -> int | None:
    return sorted(sides)[len(sides) // 2] if sides else None
