"""What an evaluation's scores hide: by kind of sentence and referent, and under corruption. Pure functions, and reading an evaluation's folder.

    size        pixels of the referent in the picture's own size, COCO's bounds: small below 32^2, medium to 96^2, large above
    length      words of the expression
    position    with or without a word of place (aml.language.POSITION_WORDS)
    distractor  with or without another annotated object of the referent's category in the picture

Scores are shares in [0, 1].
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from aml.data import CORRUPTIONS, split_words, targets_of
from aml.errors import UserError
from aml.metrics import Sums, score
from aml.synthetic import POSITION_WORDS

SIZES = ((32**2, "small"), (96**2 + 1, "medium"))

"""Upper bounds of the area, exclusive (COCO's ranges are 0..32^2, 32^2..96^2, and above)."""

LENGTHS = ((3, "1-2 words"), (6, "3-5 words"), (11, "6-10 words"))

GROUPS = {
    "size": ("small", "medium", "large"),
    "length": ("1-2 words", "3-5 words", "6-10 words", "11 words or more"),
    "position": ("with", "without"),
    "distractor": ("with", "without"),
}

METRICS = ("mIoU", "oIoU")


def fact(row: dict, ref: dict, sentence: dict, area: int) -> dict:
    """What is known of a sentence before any model has seen it: a line of sentences.jsonl. `area` in pixels of the picture's own size.

    `distractor` is null where the referent's category is not annotated, or nothing is referred to.
    """
    named, kinds = targets_of(ref), {o["ann_id"]: o.get("category") for o in row["objects"]}
    wanted, others, found = (
        {kinds[i] for i in named},
        [kind for i, kind in kinds.items() if i not in named],
        split_words(sentence["sent"]),
    )
    return {
        "split": ref["split"],
        "image_id": row["image_id"],
        "ref_id": ref["ref_id"],
        "sent_id": sentence["sent_id"],
        "sentence": sentence["sent"],
        "area": area,
        "words": len(found),
        "position": not POSITION_WORDS.isdisjoint(found),
        "distractor": any(kind in wanted for kind in others)
        if named and None not in wanted
        else None,
    }


def groups_of(line: dict) -> dict[str, str]:
    """{"size": "small", ...}: the group of each breakdown that a sentence belongs to."""
    size = next((name for bound, name in SIZES if line["area"] < bound), "large")
    length = next((name for bound, name in LENGTHS if line["words"] < bound), "11 words or more")
    found = {"size": size, "length": length, "position": "with" if line["position"] else "without"}
    return (
        found
        if line["distractor"] is None
        else found | {"distractor": "with" if line["distractor"] else "without"}
    )


def breakdown(counted: Iterable[tuple[dict, int, int]]) -> dict[str, dict[str, dict[str, dict]]]:
    """{split: {"size": {"small": {"mIoU", "oIoU", "P@0.5" ..., "n"}}}}; only groups that occur.   counted: (fact, I, U in pixels)"""
    where: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for line, intersection, union in counted:
        for kind, group in groups_of(line).items():
            where.setdefault((line["split"], kind, group), []).append((intersection, union))
    found: dict = {}
    for split in dict.fromkeys(key[0] for key in where):
        for kind, groups in GROUPS.items():
            scores = {
                group: _scores(where[split, kind, group])
                for group in groups
                if (split, kind, group) in where
            }
            if scores:
                found.setdefault(split, {})[kind] = scores
    return found


def _scores(pairs: list[tuple[int, int]]) -> dict:
    both, either = torch.tensor(pairs, dtype=torch.int64).unbind(1)
    return (Sums() + score(both, either)).scores()


def robustness(
    metrics: dict[str, dict], baseline: dict[str, dict] | None = None
) -> dict[str, dict[str, dict]]:
    """{split: {"fog": {...}, ..., "mean": {...}}} from what metrics.json holds; only splits and corruptions that were measured.

    Of each corruption: `severities`, and for mIoU and oIoU the mean over them, `drop_<metric>` = 1 - mean / clean; under "mean" the same
    averaged over the corruptions. With a baseline's metrics (same views) also `over_baseline_<metric>`, mean minus the baseline's mean, and
    `relative_drop_<metric>`, the drop (clean - mean) over the baseline's: below 1 it loses less. Null where a division would be by 0.
    """
    found = {}
    for split in (key for key in metrics if "/" not in key):
        levels: dict[str, list[int]] = {}
        for name, _, level in (
            key.removeprefix(f"{split}/").partition(":")
            for key in metrics
            if key.startswith(f"{split}/")
        ):
            if level != "0":
                levels.setdefault(name, []).append(int(level))
        lines = {
            name: _corrupted(metrics, baseline, split, name, sorted(levels[name]))
            for name in CORRUPTIONS
            if name in levels
        }
        if lines:
            clean = {m: metrics[split][m] for m in METRICS}
            means = {m: sum(line[m] for line in lines.values()) / len(lines) for m in METRICS}
            other = baseline and {
                m: sum(line[m] - line[f"over_baseline_{m}"] for line in lines.values()) / len(lines)
                for m in METRICS
            }
            found[split] = lines | {
                "mean": {"severities": []}
                | _against(clean, means, baseline and baseline[split], other)
            }
    return found


def _corrupted(
    metrics: dict, baseline: dict | None, split: str, name: str, severities: list[int]
) -> dict:
    def mean(of: dict) -> dict:
        return {
            m: sum(of[f"{split}/{name}:{s}"][m] for s in severities) / len(severities)
            for m in METRICS
        }

    return {"severities": severities} | _against(
        metrics[split], mean(metrics), baseline and baseline[split], baseline and mean(baseline)
    )


def _against(clean: dict, corrupted: dict, clean_b: dict | None, corrupted_b: dict | None) -> dict:
    line = {}
    for m in METRICS:
        line |= {m: corrupted[m], f"drop_{m}": 1 - corrupted[m] / clean[m] if clean[m] else None}
        if clean_b and corrupted_b:
            lost, lost_b = clean[m] - corrupted[m], clean_b[m] - corrupted_b[m]
            line |= {
                f"over_baseline_{m}": corrupted[m] - corrupted_b[m],
                f"relative_drop_{m}": lost / lost_b if lost_b else None,
            }
    return line


def read_sentence_scores(folder: Path) -> tuple[dict, dict]:
    """about.json and metrics.json of a folder that `evaluate --out` wrote. UserError where it is none."""
    try:
        return tuple(
            json.loads((Path(folder) / name).read_text("utf-8"))
            for name in ("about.json", "metrics.json")
        )
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"{folder} is no finished evaluation ({what}); give the --out folder of `python -m orchestrator evaluate`"
        ) from None


def check_same_sentences(a: dict, b: dict, name_a: str, name_b: str) -> None:
    """UserError where two evaluations (their about.json) did not measure the same thing."""
    protocol = "evaluate both with --protocol original"
    wanted = [
        (
            "data fingerprint",
            lambda x: x["data"]["fingerprint"],
            "evaluate both on the same shards",
        ),
        ("protocol", lambda x: x["protocol"], protocol),
    ]
    if a["protocol"] == b["protocol"] == "square":
        wanted += [
            (
                "network size",
                lambda x: f"{x['image_size']} px, {x['fit']}",
                f"the square protocol scores at network size, so {protocol}",
            )
        ]
    for what, of, remedy in wanted:
        if of(a) != of(b):
            raise UserError(
                f"{name_a} and {name_b} cannot be compared: the {what} is {of(a)} and {of(b)}; {remedy}"
            )


def breakdown_lines(found: dict) -> list[str]:
    return [
        f"{split:12} {kind:10} {group:16} mIoU {s['mIoU']:.4f}  oIoU {s['oIoU']:.4f}  P@0.5 {s['P@0.5']:.4f}  n {s['n']}"
        for split, kinds in found.items()
        for kind, groups in kinds.items()
        for group, s in groups.items()
    ]


def robustness_lines(found: dict) -> list[str]:
    """One line a corruption: the mean over its severities, the drop, and what the baseline makes of both."""

    def share(value: float | None, sign: str = "") -> str:
        return "–" if value is None else f"{value:{sign}.1%}"

    lines = []
    for split, names in found.items():
        for name, line in names.items():
            how = (
                f"severities {','.join(map(str, line['severities']))}"
                if line["severities"]
                else "mean of these"
            )
            text = f"{split:12} {name:10} {how:21} mIoU {line['mIoU']:.4f}  drop {share(line['drop_mIoU'])}  oIoU {line['oIoU']:.4f}  drop {share(line['drop_oIoU'])}"
            if "over_baseline_mIoU" in line:
                ratio = line["relative_drop_mIoU"]
                text += f"  mIoU over the baseline {100 * line['over_baseline_mIoU']:+.2f} points, loses x{'–' if ratio is None else f'{ratio:.2f}'} of its loss"
            lines.append(text)
    return lines
