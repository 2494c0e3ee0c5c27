"""Read the refs of a data set: refs(SPLIT_BY).p of refer, or grefs(SPLIT_BY).json of gRefCOCO.

What other data sets write otherwise is met: sentences without a sent_id are numbered, a sentence
that a ref gives twice under one sent_id counts once, and a ref may hold its own mask
(`segmentation`) and then needs no ann_id.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from aml.data.refer_counts import SENTENCE_LETTERS, sentence_problem, split_words
from aml.data.refer_files.findings import Findings
from aml.data.rle import NOTHING
from aml.errors import UserError
from aml.reading import ID, describe, is_id, read_json, read_pickle, split_problem, text_problem


def load_refs(
    path: Path, *, skip_unusable: bool = False, findings: Findings | None = None
) -> list[dict]:
    """Return the entries of REFER's refs(split_by).p.

    Args:
        path: the file.
        skip_unusable: leave out sentences without a word, and refs without a sentence.
        findings: to which is added what is left out.

    Raises:
        UserError: the file is missing or damaged, or holds more than plain data.
    """
    refs = read_pickle(path, "a refs pickle of REFER's")
    return _checked(_usable(refs, skip_unusable, findings), path)


def load_grefs(
    path: Path, *, skip_unusable: bool = False, findings: Findings | None = None
) -> list[dict]:
    """Return the entries of gRefCOCO's grefs(split_by).json.

    Each entry has `ann_ids`, an empty list for an expression without a target.

    Args:
        path: the file.
        skip_unusable: leave out sentences without a word, and refs without a sentence.
        findings: to which is added what is left out.

    Raises:
        UserError: the file is missing or damaged.
    """
    refs = read_json(path, "gRefCOCO's list of referents")
    refs = _checked(_usable(refs, skip_unusable, findings), path, several=True)
    return [ref | {"ann_ids": _named(ref["ann_id"])} for ref in refs]


def own_mask(ref: dict) -> Any:
    """Return the mask that a ref holds itself, None where it holds none."""
    return ref.get("segmentation") or None


def _named(given: Any) -> list[int] | None:
    """Return the annotations that a gRefCOCO ref names, each once; None where it names none so."""
    named = given if isinstance(given, list) else [given]
    if len(named) == 1 and type(named[0]) is int and named[0] == NOTHING:
        return []
    return list(dict.fromkeys(named)) if named and all(map(is_id, named)) else None


def _usable(refs: Any, skip_unusable: bool, findings: Findings | None) -> Any:
    """Return the refs with numbered sentences, each once.

    Anything else that is wrong stays, for `_checked` to refuse.

    Args:
        refs: content of the file.
        skip_unusable: leave out sentences that hold no word, and refs without a sentence.
        findings: to which is added what is left out.
    """
    if not isinstance(refs, list):
        return refs
    left_out = (findings if findings is not None else Findings()).left_out
    kept = []
    number = max((n for ref in refs for n in _sent_ids(ref)), default=-1)
    for ref in refs:
        given = ref.get("sentences") if isinstance(ref, dict) else None
        if not isinstance(given, list | tuple):
            kept.append(ref)
            continue
        sentences, number = _numbered(ref, list(given), number)
        sentences = _once(sentences, left_out)
        if skip_unusable:
            worded = [s for s in sentences if not _is_wordless(s)]
            left_out["sentences without a word"] += len(sentences) - len(worded)
            left_out["refs without a sentence"] += not worded
            sentences = worded
        if sentences or not skip_unusable:
            kept.append(ref | {"sentences": sentences})
    return kept


def _sent_ids(ref: Any) -> list[int]:
    """Return the ids of sentences that a ref gives, in its sentences and in `sent_ids`."""
    if not isinstance(ref, dict):
        return []
    sentences = ref.get("sentences")
    listed = ref.get("sent_ids")
    given = list(listed) if isinstance(listed, list | tuple) else []
    if isinstance(sentences, list | tuple):
        given += [s.get("sent_id") for s in sentences if isinstance(s, dict)]
    return [n for n in given if is_id(n)]


def _numbered(ref: dict, sentences: list, number: int) -> tuple[list, int]:
    """Return the sentences of a ref with a sent_id each, and the largest number in use.

    Where no sentence has one, it is that of the ref's `sent_ids`, or the next that is free.

    Args:
        ref: the ref.
        sentences: its sentences.
        number: the largest number in use before.
    """
    if not sentences or not all(isinstance(s, dict) and "sent_id" not in s for s in sentences):
        return sentences, number
    ids = ref.get("sent_ids")
    if not isinstance(ids, list | tuple) or len(ids) != len(sentences):
        ids = range(number + 1, number + 1 + len(sentences))
        number += len(sentences)
    return [s | {"sent_id": n} for s, n in zip(sentences, ids, strict=True)], number


def _once(sentences: list, left_out: Counter[str]) -> list:
    """Return the sentences without those that repeat another's sent_id and text."""
    seen = set()
    kept = []
    for sentence in sentences:
        key = None
        if isinstance(sentence, dict):
            key = sentence.get("sent_id"), sentence.get("sent")
        if key is None or type(key[0]) is not int or not isinstance(key[1], str):
            kept.append(sentence)
        elif key not in seen:
            seen.add(key)
            kept.append(sentence)
    left_out["sentences that a ref gives twice"] += len(sentences) - len(kept)
    return kept


def _is_wordless(sentence: Any) -> bool:
    text = sentence.get("sent") if isinstance(sentence, dict) else None
    return isinstance(text, str) and len(text) <= SENTENCE_LETTERS and not split_words(text)


def _checked(refs: Any, path: Path, several: bool = False) -> list[dict]:
    """Return the refs; raise UserError where they are not as REFER writes them.

    Args:
        refs: content of the file.
        path: the file.
        several: whether refs name several annotations or none, as gRefCOCO's do.
    """
    needed = {"ref_id", "ann_id", "image_id", "split", "sentences"}
    if not isinstance(refs, list) or not all(
        isinstance(r, dict) and needed - ({"ann_id"} if _own(r, several) else set()) <= r.keys()
        for r in refs
    ):
        raise UserError(
            f"{path} is not REFER's list of refs (dicts with {', '.join(sorted(needed))}); get the "
            "file again"
        )
    seen: set[tuple[int, int]] = set()
    first = ""
    count = 0
    for ref in refs:
        if problem := _wrong(ref, several) or _repeated(ref, seen):
            first = first or f"ref {describe(ref['ref_id'])} {problem}"
            count += 1
    if count:
        advice = "get the file again"
        if "holds no word" in first or "has no sentence" in first:
            advice += ", or pass --skip-unreadable to leave such sentences out"
        raise UserError(f"{path}: {first} ({count} such refs in all); {advice}")
    return refs


def _own(ref: dict, several: bool) -> bool:
    """Return whether a ref needs no ann_id: it gives none, and holds its mask itself."""
    return not several and ref.get("ann_id") is None and own_mask(ref) is not None


def _wrong(ref: dict, several: bool) -> str:
    """Return what is wrong with a ref; empty where it is as REFER writes it."""
    unnamed = several or _own(ref, several)
    for key in ("ref_id", "image_id") if unnamed else ("ref_id", "image_id", "ann_id"):
        if not is_id(ref[key]):
            return f"has {key} {describe(ref[key])}, and it must be {ID}"
    if several and _named(ref["ann_id"]) is None:
        return (
            f"names annotations {describe(ref['ann_id'])}; it must be some annotation ids, or [-1] "
            "for no target"
        )
    if problem := split_problem(ref["split"]):
        return f"has a split that {problem}"
    sentences = ref["sentences"]
    if not isinstance(sentences, list | tuple) or not sentences:
        return f"has no sentence, but {describe(sentences)}; each ref needs a list of one or more"
    return next((problem for s in sentences if (problem := _wrong_sentence(s))), "")


def _wrong_sentence(sentence: Any) -> str:
    """Return what is wrong with a sentence of a ref; empty where it is as REFER writes it."""
    if not isinstance(sentence, dict) or not is_id(sentence.get("sent_id")):
        return f"has a sentence without sent_id ({ID}) or sent (text): {describe(sentence)}"
    if problem := sentence_problem(sentence.get("sent")):
        return f"has a sentence without sent_id or sent (text): sent {problem}"
    if problem := text_problem(sentence.get("raw", ""), SENTENCE_LETTERS):
        return f"has a sentence whose raw {problem}"
    return ""


def _repeated(ref: dict, seen: set[tuple[int, int]]) -> str:
    """Return which sentence of a ref comes twice; empty where none does.

    Args:
        ref: the ref, after `_wrong` found nothing.
        seen: (ref_id, sent_id) of the sentences of earlier refs, to which those of this ref are
            added. The pair names an item.
    """
    for key in ((ref["ref_id"], s["sent_id"]) for s in ref["sentences"]):
        if key in seen:
            return f"has sentence {key[1]} twice, and ids must be unique"
        seen.add(key)
    return ""
