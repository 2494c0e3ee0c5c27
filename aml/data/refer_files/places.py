"""Find the files of a data set in REFER's format, and its pictures.

A data set is a folder with refs(SPLIT_BY).p, as refer has it, or grefs(SPLIT_BY).json, as gRefCOCO
has it. Its masks stand in instances.json, or else in all files instances*.json together; names of
categories may stand in files categories*.json besides.
"""

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from aml.errors import UserError
from aml.reading import SUFFIXES, describe, file_problem

REFS_FILE = re.compile(r"refs\((.+)\)\.p|grefs\((.+)\)\.json")

COCO_PREFIX = re.compile(r"coco_(?:train|val|test)\d{4}_(?=\d)")

NUMBER = re.compile(r"\d{1,18}")

SHOWN = 20
"""Names that a message lists at most."""

MAX_FILES = 2_000_000
"""Pictures under the images folder at most, where they must be searched for."""

MAX_DEPTH = 8
"""Folders inside each other under the images folder at most."""


@dataclass(frozen=True)
class DatasetFiles:
    """Paths of a data set's files."""

    refs: Path
    instances: tuple[Path, ...]
    categories: tuple[Path, ...]

    @property
    def several(self) -> bool:
        """Whether refs name several annotations or none, as gRefCOCO's do."""
        return self.refs.name.startswith("grefs")

    @property
    def masks(self) -> str:
        """Return the name of the files of the masks, for a message."""
        return " and ".join(path.name for path in self.instances[:3])


def dataset_files(root: Path, dataset: str, split_by: str) -> DatasetFiles:
    """Return the paths of a data set's files; instances.json may be missing.

    Args:
        root: folder of the data sets' folders.
        dataset: name of the data set's folder.
        split_by: name of the splitting.

    Raises:
        UserError: there is no such folder, or no such file of refs in it.
    """
    problem = file_problem(dataset, "the folder of the data sets")
    folder = root / ("" if problem else dataset)
    if problem or len(Path(dataset).parts) != 1:
        problem = problem or f"is {describe(dataset)}"
        raise UserError(f"dataset {problem}; give the name of one folder in {root}")
    if not (known := _split_bys(folder)):
        raise UserError(f"{root} has no data set {dataset!r}: {_known(root, folder)}")
    names = [f"refs({split_by}).p", f"grefs({split_by}).json"]
    there = [name for name in names if os.path.isfile(folder / name)]
    if not there:
        raise UserError(
            f"{dataset} has no split_by {describe(split_by)}; {folder} has {', '.join(known)}"
        )
    whole = folder / "instances.json"
    parts = () if os.path.exists(whole) else sorted(folder.glob("instances*.json"))
    return DatasetFiles(
        folder / there[-1 if dataset == "grefcoco" else 0],
        tuple(parts) or (whole,),
        tuple(sorted(folder.glob("categories*.json"))),
    )


def _split_bys(folder: Path) -> list[str]:
    """Return the names of the splittings whose refs a folder holds, in order."""
    try:
        names = sorted(os.listdir(folder))
    except (OSError, ValueError):
        return []
    return [found[1] or found[2] for found in map(REFS_FILE.fullmatch, names) if found]


def _known(root: Path, folder: Path) -> str:
    """Return which folders hold refs, for the message that one does not."""
    if _split_bys(root):
        return (
            f"the files of refs lie in it directly; give --refer-root {root.parent or '.'} and "
            f"--dataset {root.name}"
        )
    try:
        names = sorted(os.listdir(root))
    except OSError as error:
        return f"it cannot be read ({error.strerror}); give the folder of the data sets' folders"
    known = [f"{name} ({', '.join(found)})" for name in names if (found := _split_bys(root / name))]
    wanted = "refs(SPLIT_BY).p or grefs(SPLIT_BY).json"
    if not known:
        return f"no folder in it holds {wanted}; give the folder of the data sets' folders"
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    lacks = f"{folder.name} holds no {wanted}, " if folder.is_dir() else ""
    return f"{lacks}folders with refs are {', '.join(known[:SHOWN])}{more}; use one of them"


class Pictures:
    """Find pictures by the names in the annotations.

    A file is found under its exact name in the images folder, in train2014 or images/train2014 of
    it; or else anywhere under the images folder by its name, its name without the ending, or its
    number ("839.jpg" is COCO_train2014_000000000839.jpg). Folders in a name must be those of the
    file. Of files of one name in several folders the one in a folder named as a split is taken
    whose refs the picture has.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._by_key: dict[str | int, list[str]] | None = None

    def find(self, name: str, splits: Collection[str]) -> Path | None:
        """Return the path of a picture; None where there is none.

        Args:
            name: its name in the annotations, which leads out of no folder.
            splits: the splits of its refs.

        Raises:
            UserError: several files have that name, or the folder holds too many files.
        """
        for place in (self.folder, self.folder / "train2014", self.folder / "images" / "train2014"):
            if os.path.isfile(place / name):  # False for a name that no file can have
                return place / name
        if self._by_key is None:
            self._by_key = self._index()
        for key in _keys(os.path.basename(name)):
            found = [f for f in self._by_key.get(key, ()) if self._in_folders(f, name)]
            if len(found) > 1:
                found = [f for f in found if set(splits) & set(Path(f).parts[:-1])] or found
            if len(found) > 1:
                first, second = sorted(found)[:2]
                raise UserError(
                    f"picture {describe(name)} is {first} and {second} under {self.folder} "
                    f"({len(found)} files in all); name its folder in file_name"
                )
            if found:
                return self.folder / found[0]
        return None

    def _in_folders(self, file: str, name: str) -> bool:
        """Return whether a file lies in the folders that a name has."""
        wanted = Path(name).parent.parts
        return not wanted or (self.folder / file).parent.parts[-len(wanted) :] == wanted

    def _index(self) -> dict[str | int, list[str]]:
        """Return {key: pictures under the folder that have it, in order}."""
        found: dict[str | int, list[str]] = {}
        for number, file in enumerate(_walk(self.folder), 1):
            if number > MAX_FILES:
                raise UserError(
                    f"{self.folder} holds more than {MAX_FILES} pictures; give the folder of this "
                    "data set's pictures alone"
                )
            for key in _keys(os.path.basename(file)):
                found.setdefault(key, []).append(file)
        return found


def _keys(name: str) -> list[str | int]:
    """Return what finds a picture: its name, its name without the ending, its number."""
    stem, ending = os.path.splitext(name.lower())
    if ending not in SUFFIXES:
        stem = name.lower()
    number = COCO_PREFIX.sub("", stem)
    return [name, f"/{stem}", *([int(number)] if NUMBER.fullmatch(number) else [])]


def _walk(folder: Path) -> Iterator[str]:
    """Yield the pictures under a folder by their path in it, in order; links are followed once."""
    seen: set[tuple[int, int]] = set()
    waiting = [("", 0)]
    while waiting:
        inside, depth = waiting.pop()
        try:
            state = os.stat(folder / inside)
            entries = sorted(os.scandir(folder / inside), key=lambda entry: entry.name)
        except OSError:  # a folder that may not be read holds no picture that could be
            continue
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        for entry in entries:
            path = os.path.join(inside, entry.name)
            if entry.is_dir():
                if depth < MAX_DEPTH:
                    waiting.append((path, depth + 1))
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                yield path
