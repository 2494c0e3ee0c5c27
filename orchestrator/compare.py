"""Is A better than B: two or more arms or trainings over their seeds, or evaluations of checkpoints over their images.

    RUN        a sweep (each of its confirmed arms), or a training; trainings that differ in nothing but the seed are one side
    RUN:ARM    one arm of a sweep, its finished confirmation trials
    DIR        what `evaluate --out DIR` wrote: only with others of its kind

Every pair is tested; Holm's correction is over all tests that are printed. What was not measured alike is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path

import numpy as np

from aml.errors import UserError
from orchestrator import breakdown, runs
from orchestrator import statistics as st
from orchestrator.config import Experiment
from orchestrator.differences import LEVEL, RESAMPLES, Difference, ImageSums, holm, image_difference, mean_interval, seed_difference

FEW_IMAGES = 50


def compare(names: list[str], root: Path, *, metric: str = "val/mIoU", say: Callable = print) -> dict:
    """Compare and say it.   -> {"kind": "seeds" or "images", "comparisons": [...], ...}; NaN is None

    UserError: fewer than two sides, one that is not there or not finished, or sides that were not measured alike.
    """
    folders = [(Path(name) / "per_sentence.jsonl").is_file() for name in names]
    if any(folders) and not all(folders):
        raise UserError(
            f"{names[folders.index(True)]} is an evaluation and {names[folders.index(False)]} is not; compare evaluations with evaluations, runs with runs"
        )
    return _evaluations(names, say) if names and all(folders) else _runs(names, root, metric, say)


# ---- seeds ----------------------------------------------------------------------------------------------------------


@dataclass
class Side:
    """One arm or training setting with its seeds."""

    label: str
    arm: str
    run: runs.Run
    experiment: Experiment
    trials: list[dict] = field(default_factory=list)
    """Ledger lines, done."""
    flops: float = math.nan
    """Of a training step, a sample."""
    also: list[runs.Run] = field(default_factory=list)
    """The trainings of the same setting on other seeds."""

    @property
    def epochs(self) -> int:
        return max(map(st.epochs_of, self.trials))

    @property
    def compute(self) -> float:
        """FLOPs of the training, an item of the data."""
        return self.epochs * self.flops


def _runs(names: list[str], root: Path, metric: str, say: Callable) -> dict:
    sides, whole = _sides(names, root)
    pairs = list(combinations(range(len(sides)), 2))
    if whole:  # several sweeps, none with an arm named: arm against the same arm
        pairs = [(i, j) for i, j in pairs if sides[i].arm == sides[j].arm and sides[i].run.folder != sides[j].run.folder]
    if not pairs:
        what = "no arm is confirmed in both sweeps" if whole else f"{len(sides)} side{'' if len(sides) == 1 else 's'} to compare"
        raise UserError(
            f"{what}; name two or more arms as RUN:ARM, trainings that differ in more than their seed, or a sweep with several confirmed arms"
        )
    for i, j in pairs:
        _check_alike(sides[i], sides[j])
    scores = [st.by_seed(side.trials, metric) for side in sides]
    for side, found in zip(sides, scores, strict=True):
        if not found:
            known = sorted(k for k in side.trials[0]["history"][-1] if k.startswith("val/"))
            raise UserError(f"{side.label} has no {metric} in its last epoch; choose --metric out of {', '.join(known)}")
        i = mean_interval(found.values())
        interval = (
            f"95% t interval {st.pct(i.low)} to {st.pct(i.high)}, deviation {st.pct(i.sd)}, {i.n} seeds" if i.n > 1 else "one seed, no interval"
        )
        say(f"{side.label}: {metric} {st.pct(i.mean)}% ({interval}), {side.epochs} epochs")
    found = [seed_difference(scores[i], scores[j]) for i, j in pairs]
    adjusted = holm([d.p for d in found])
    tests = sum(not math.isnan(d.p) for d in found)
    rows = []
    for (i, j), d, p in zip(pairs, found, adjusted, strict=True):
        text = seed_words(sides[i].label, sides[j].label, d, p, tests, metric)
        equal = equality(sides[i], sides[j])
        say(f"{text} {equal}")
        rows.append(_row(sides[i].label, sides[j].label, d, p) | {"metric": metric, "equality": equal, "words": text})
    for note in _notes([sides[k] for k in sorted({k for pair in pairs for k in pair})]):
        say(note)
    return _no_nan(
        {"kind": "seeds", "metric": metric, "tests": tests, "sides": [_described(*s) for s in zip(sides, scores, strict=True)], "comparisons": rows}
    )


def _sides(names: list[str], root: Path) -> tuple[list[Side], bool]:
    """The sides that the names mean, and whether they are two or more whole sweeps."""
    sides: dict[str, Side] = {}
    kinds = []
    for name in names:
        run_name, _, arm = name.partition(":")
        run = find(root, run_name, arm)
        kinds.append("arm" if arm else run.kind)
        if run.kind == "sweep":
            for side in _arms(run, arm):
                sides[side.label] = side
        elif arm:
            raise UserError(f"{run.name} is a training, which has no arms; name it without :{arm}")
        else:
            side = _training(run)
            of = sides.setdefault(_setting(side.experiment, run), side)
            if run.folder not in [r.folder for r in (of.run, *of.also)]:
                of.trials += side.trials
                of.also.append(run)
                of.label = f"{of.run.name} (and {len(of.also)} more seeds)"
    return list(sides.values()), kinds.count("sweep") == len(kinds) > 1


def find(root: Path, name: str, part: str) -> runs.Run:
    """A run by its folder or its name; where a `part` of it (an arm, a trial) is named too, a sweep."""
    folder = Path(name)
    for kind in runs.KINDS:
        if name and (folder / f"{kind}.json").is_file():
            return runs.Run(folder, kind)
    return runs.find(root, name, "sweep" if part else None)


def _arms(run: runs.Run, arm: str) -> list[Side]:
    experiment, ledger = run.experiment(), run.ledger()
    done: dict[str, list[dict]] = {}
    for record in ledger:
        if record["stage"] == "confirm" and record["state"] == "done":
            done.setdefault(record["arm"], []).append(record)
    if arm and arm not in done:
        near = get_close_matches(arm, done, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        have = ", ".join(done) or "none; the search's scores are of chosen settings and are not compared"
        raise UserError(f"{run.name} has no finished confirmation trial of arm {arm!r}{hint}; confirmed there: {have}")
    if not done:
        raise UserError(f"{run.name} has no finished confirmation trial; let it finish, with search.seeds.confirm of 2 or more")
    cost = run.state.get("cost") or {}
    return [
        Side(f"{run.name}:{name}", name, run, experiment, done[name], st.number((cost.get(name) or {}).get("flops_per_item")))
        for name in ([arm] if arm else done)
    ]


def _training(run: runs.Run) -> Side:
    if not run.finished:
        raise UserError(f"{run.name} is not finished (state: {run.state.get('state', 'unknown')}); let it end, then compare")
    trial = {"history": run.state["history"], "seed": run.state["seed"]}
    return Side(run.name, run.state.get("arm") or "training", run, run.experiment(), [trial])


def _setting(experiment: Experiment, run: runs.Run) -> str:
    """What a training is besides its seed, its name and where it ran."""
    tree = {k: v for k, v in experiment.to_dict().items() if k not in ("name", "seed", "search", "resources", "tracking", "storage")}
    return json.dumps([tree, run.state["data"]["fingerprint"], run.state.get("init")], sort_keys=True)


def _check_alike(a: Side, b: Side) -> None:
    """UserError where two sides were not validated on the same sentences in the same way."""

    def facts(side: Side) -> list[tuple[str, object, str]]:
        data = side.experiment.data
        elsewhere = "evaluate both on the same data with --protocol original and compare those folders"
        return [
            ("data fingerprint", side.run.state["data"]["fingerprint"], elsewhere),
            ("validation split", data.val_split, elsewhere),
            ("data.val_limit", data.val_limit, elsewhere),
            ("protocol", f"square at {data.size} px, {data.fit}", elsewhere),
            ("threshold", side.experiment.evaluate.threshold, elsewhere),
        ]

    for (what, one, remedy), (_, two, _) in zip(facts(a), facts(b), strict=True):
        if one != two:
            raise UserError(f"{a.label} and {b.label} cannot be compared: the {what} is {one} and {two}; {remedy}")


def equality(a: Side, b: Side) -> str:
    """Which equality holds between two sides: epochs, compute (FLOPs, to within half an epoch), both or neither."""
    epochs = "equal epochs" if a.epochs == b.epochs else f"{a.epochs} and {b.epochs} epochs"
    ratio = a.compute / b.compute
    if not math.isfinite(ratio):
        return f"Compared at {epochs}; what a step costs was not recorded."
    if abs(math.log(ratio)) <= 0.5 / min(a.epochs, b.epochs) and (a.epochs != b.epochs or abs(ratio - 1) < 5e-3):
        return f"Compared at {epochs} and equal compute (FLOPs x{ratio:.3f})."
    return f"Compared at {epochs}, not at equal compute: the first took x{ratio:.3f} the FLOPs of the second."


def seed_words(a: str, b: str, d: Difference, p: float, tests: int, metric: str) -> str:
    """One sentence: how much, how sure, never more than the seeds carry. `p`: Holm-adjusted over `tests`."""
    lead = f"{a} is {st.pct(abs(d.difference))} points {'above' if d.difference >= 0 else 'below'} {b} in {metric}"
    if d.test == "none":
        return f"{lead}: not distinguishable, as one seed says nothing of noise; train both on two or more common seeds."
    seeds = f"{d.n[0]} paired seeds" if d.test == "paired t" else f"{d.n[0]} and {d.n[1]} seeds, none or one in common"
    return f"{lead} ({_sure(d, p, tests)}, {d.test} test, {seeds}): {_verdict_words(d, p, tests, 'seed noise', 'these seeds')}"


def _sure(d: Difference, p: float, tests: int) -> str:
    corrected = f", {p:.3g} after Holm's correction for {tests} tests" if tests > 1 else ""
    return f"95% interval {st.points(d.low)} to {st.points(d.high)}, p {d.p:.3g}{corrected}"


def verdict(d: Difference, p: float) -> str:
    """better or worse: also after correction; weak: only taken alone; undecided."""
    if math.isnan(d.p) or d.p >= LEVEL:
        return "undecided"
    return ("better" if d.difference > 0 else "worse") if p < LEVEL else "weak"


def _verdict_words(d: Difference, p: float, tests: int, noise: str, what: str) -> str:
    found = verdict(d, p)
    if found == "undecided":
        return f"not distinguishable; {what} would show a true difference of {st.pct(d.detectable)} points four times in five."
    also = ", also after correction" if tests > 1 else ""
    if found == "weak":
        return f"more than {noise} explains taken alone, but not after correction for {tests} tests: weak evidence."
    return f"{found}, by more than {noise} explains{also} (smallest detectable difference {st.pct(d.detectable)} points)."


def _notes(sides: list[Side]) -> list[str]:
    """What else differs between the sides."""
    notes = []
    if len(versions := {s.run.state.get("code_version") or s.run.state.get("git_sha") for s in sides}) > 1:
        notes.append(f"note: they were computed by different versions of the code ({', '.join(sorted(map(str, versions)))})")
    leaves = [s.experiment.leaves() for s in sides]
    skipped = ("name", "seed", "search", "resources", "tracking", "storage")
    changed = [k for k in leaves[0] if k.split(".")[0] not in skipped and any(other.get(k) != leaves[0][k] for other in leaves)]
    if changed:
        notes.append(f"the experiments differ in {', '.join(changed[:12])}{' ...' if len(changed) > 12 else ''}")
    if any(s.run.kind == "sweep" and (s.run.state.get("settings_tried") or {}).get(s.arm, 1) > 1 for s in sides):
        tried = ", ".join(f"{s.label} {(s.run.state.get('settings_tried') or {}).get(s.arm, '?')}" for s in sides)
        notes.append(f"each arm stands with the best setting of its search; settings tried: {tried}")
    return notes


def _described(side: Side, scores: dict[int, float]) -> dict:
    i = mean_interval(scores.values())
    seeds = {str(seed): value for seed, value in sorted(scores.items())}
    return {"label": side.label, "arm": side.arm, "epochs": side.epochs, "flops_per_item": side.compute, "seeds": seeds} | i._asdict()


# ---- images ---------------------------------------------------------------------------------------------------------


def _evaluations(names: list[str], say: Callable) -> dict:
    if len(names) < 2:
        raise UserError(f"{names[0]} is one evaluation; name two or more to compare")
    read = [breakdown.read(Path(name)) for name in names]
    for (name, (about, _)), (other, (about_b, _)) in combinations(zip(names, read, strict=True), 2):
        breakdown.check_same(about, about_b, name, other)
    splits = [s for s in read[0][0]["splits"] if all(s in about["splits"] for about, _ in read)]
    if not splits:
        have = "; ".join(f"{name}: {', '.join(about['splits'])}" for name, (about, _) in zip(names, read, strict=True))
        raise UserError(f"no split is in all of the evaluations ({have}); evaluate the same --splits")
    rows = {name: _rows(Path(name)) for name in names}
    views = {c for c in read[0][0]["corruptions"] if not c.endswith(":0") and all(c in about["corruptions"] for about, _ in read)}
    found = []
    for split in splits:
        for what, chosen in (("clean", {"clean:0"}), (f"corrupted ({len(views)} views)", views)):
            if chosen:
                sums = {name: _sums(rows[name], split, chosen) for name in names}
                found += [(split, what, a, b, image_difference(*_paired(sums, a, b))) for a, b in combinations(names, 2)]
    rows_out = []
    for metric in breakdown.METRICS:
        adjusted = holm([d[metric].p for *_, d in found])
        for (split, what, a, b, d), p in zip(found, adjusted, strict=True):
            text = image_words(a, b, d[metric], p, len(found), f"{metric} on {split}, {what}")
            say(text)
            rows_out.append(_row(a, b, d[metric], p) | {"metric": metric, "split": split, "view": what, "words": text})
    if min(d["mIoU"].n[0] for *_, d in found) < FEW_IMAGES:
        say(f"note: on fewer than {FEW_IMAGES} images a bootstrap interval is too narrow")
    say(
        f"Paired bootstrap over images, {RESAMPLES} resamples, protocol {read[0][0]['protocol']}; Holm's correction within each metric. It tells these "
        "checkpoints apart, not their methods: another seed may turn it round, which comparing runs over seeds shows."
    )
    return _no_nan(
        {"kind": "images", "protocol": read[0][0]["protocol"], "tests": len(found), "sides": [{"label": n} for n in names], "comparisons": rows_out}
    )


def _rows(folder: Path) -> list[dict]:
    with open(folder / "per_sentence.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _sums(rows: list[dict], split: str, views: set[str]) -> tuple[list, ImageSums]:
    """Which sentences (with the pixels of their truth) of some views, and the sums of each image, in the order of image_id."""
    mine = [r for r in rows if r["split"] == split and f"{r['corruption']}:{r['severity']}" in views]
    which = sorted((r["image_id"], r["ref_id"], r["sent_id"], r["corruption"], r["severity"], r["gt_pixels"]) for r in mine)
    _, place = np.unique([r["image_id"] for r in mine], return_inverse=True)

    def summed(values: list[float]) -> np.ndarray:
        return np.bincount(place, weights=values)

    iou = [r["intersection"] / r["union"] if r["union"] else 0.0 for r in mine]
    return which, ImageSums(summed(iou), summed([1.0] * len(mine)), summed([r["intersection"] for r in mine]), summed([r["union"] for r in mine]))


def _paired(sums: dict[str, tuple[list, ImageSums]], a: str, b: str) -> tuple[ImageSums, ImageSums]:
    (which, one), (which_b, two) = sums[a], sums[b]
    if which != which_b:
        raise UserError(f"{a} and {b} do not hold the same sentences ({len(which)} and {len(which_b)} rows); evaluate both on the same shards again")
    if len(one.n) < 2:
        raise UserError(f"{a} and {b} hold {len(one.n)} image, and a bootstrap over images needs two; evaluate a larger split")
    return one, two


def image_words(a: str, b: str, d: Difference, p: float, tests: int, what: str) -> str:
    lead = f"{a} is {st.pct(abs(d.difference))} points {'above' if d.difference >= 0 else 'below'} {b} in {what}"
    return f"{lead} ({_sure(d, p, tests)}, {d.n[0]} images): {_verdict_words(d, p, tests, 'the choice of images', 'these images')}"


def _row(a: str, b: str, d: Difference, p: float) -> dict:
    return {"a": a, "b": b, **d._asdict(), "p_holm": p, "verdict": verdict(d, p)}


def _no_nan(value):
    """JSON has no NaN: null instead."""
    if isinstance(value, dict):
        return {k: _no_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_no_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
