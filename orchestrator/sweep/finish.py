"""The end of a sweep: champion, baselines, cost, report, and what is said of it."""

import time

from aml.data import Items
from aml.errors import RunError
from orchestrator import evaluation, reporting, search, storage
from orchestrator.data import ObjectStoreBlocks, StreamingBlocks
from orchestrator.storage import Run

WORDS = {
    "champion": "champion",
    "untrained": "untrained model",
    "random_object": "random object",
    "largest_object": "largest object",
    "wrong_sentence": "same checkpoint, another referent's sentence",
}


def finish_sweep(driver, shared: ObjectStoreBlocks | StreamingBlocks) -> int:
    """Finish a Sweep whose trials have ended.   -> exit code: 0 where at least one trial of each arm finished"""
    this, experiment, say = driver.run, driver.experiment, driver.say
    driver.board.close()  # what follows is printed below the table
    records = list(driver.plan.records.values())
    without = [
        arm
        for arm in experiment.search.arms
        if not any(r["arm"] == arm and r["state"] != "failed" for r in records)
    ]
    best = champion(records, experiment.search.metric, experiment.search.mode)
    if best is None:
        this.update(
            state="failed",
            ended=time.time(),
            settings_tried=driver.plan.tried(),
            error=records[0]["error"] if records else "no trial ran",
        )
        say(f"{this.name} failed: no trial finished; the first error: {this.state['error']}")
        return 1
    checkpoint = this.folder / "trials" / best["trial"] / "last"
    problem = storage.try_download(checkpoint.parent, wanted=storage.weights_only)
    if problem and not checkpoint.exists():
        raise RunError(
            f"{problem}, and the champion's checkpoint is not on this machine; the same command goes on from here when the bucket answers"
        )
    if not checkpoint.exists():
        raise RunError(
            f"the checkpoint of {best['trial']}, the champion, never reached the bucket, and the machine that held it is not there; "
            "give the same command again when it is, or start another with --fresh"
        )
    val = Items(
        shared.open(),
        experiment.data.val_split,
        size=experiment.data.size,
        fit=experiment.data.fit,
        unit="sentence",
        limit=experiment.data.val_limit,
    )
    arms = {r["arm"]: driver.plan.best(r["arm"]) for r in records}
    this.update(
        state="failed" if without else "done",
        concluded=False,
        ended=time.time(),
        settings_tried=driver.plan.tried(),
        champion={
            "trial": best["trial"],
            "arm": best["arm"],
            "checkpoint": f"trials/{best['trial']}/last",
        },
        baselines=evaluation.score_baselines(
            checkpoint, val, batch=experiment.evaluate.batch, seed=experiment.seed
        ),
        cost=search.flops_ratios(
            experiment, {arm: overrides for arm, overrides in arms.items() if overrides is not None}
        ),
    )
    parent = driver.tracker.record("sweep")
    this.update(mlflow=parent)
    page = reporting.write_report(this.folder)
    driver.tracker.artifact("sweep", page.parent, "report")
    champion_metrics = {
        k: v for k, v in best["history"][-1].items() if k.startswith("val/") and v is not None
    }
    driver.tracker.metrics(
        "sweep",
        best["epochs"],
        champion_metrics
        | {f"baseline/{k}": v["mIoU"] for k, v in this.state["baselines"].items() if k != "n"},
    )
    driver.tracker.model("sweep", checkpoint, experiment.name, champion_metrics)
    this.update(concluded=True)
    say(sweep_summary(this))
    if without:
        say(f"no trial of {', '.join(without)} finished: the comparison is not whole")
    return 1 if without else 0


def champion(records: list[dict], metric: str, mode: str) -> dict | None:
    """The best confirmation trial at its last epoch, however many its arm trains; without a confirmation the best of those that trained longest."""
    sign = 1 if mode == "max" else -1
    usable = [
        r
        for r in records
        if r["state"] != "failed" and r["history"] and r["history"][-1].get(metric) is not None
    ]
    if confirmed := [r for r in usable if r["stage"] == "confirm" and r["state"] == "done"]:
        return max(confirmed, key=lambda r: sign * r["history"][-1][metric])
    return max(usable, key=lambda r: (r["epochs"], sign * r["history"][-1][metric]), default=None)


def sweep_summary(this: Run) -> str:
    """What a person wants to read at the end, and where the rest is."""
    state = this.state
    if "champion" not in state:
        return f"{this.name}: {state.get('state')}"
    counts: dict[str, int] = {}
    for r in this.ledger():
        counts[r["state"]] = counts.get(r["state"], 0) + 1
    lines = [f"{this.name}: " + ", ".join(f"{n} trials {how}" for how, n in sorted(counts.items()))]
    lines += [
        f"  {r['trial']} failed: {r['error']}" for r in this.ledger() if r["state"] == "failed"
    ]
    for arm, row in confirmed(this).items():
        lines.append(f"  {arm:16} val mIoU {row}")
    b = state["baselines"]
    lines.append(
        f"beside the champion ({state['champion']['trial']}) on {b['n']} validation sentences:"
    )
    lines += [
        f"  {words:46} mIoU {b[key]['mIoU']:.3f}  oIoU {b[key]['oIoU']:.3f}"
        for key, words in WORDS.items()
    ]
    swapped = b["wrong_sentence"]
    lines.append(
        f"  (the last on the {swapped['n']} sentences whose picture has another referent; the champion there: mIoU {swapped['champion_mIoU']:.3f})"
    )
    if state.get("budget"):
        lines.append(search.budget_message(state["budget"]))
    ratios = ", ".join(
        f"{arm} x{c['ratio']:.3f}" for arm, c in state["cost"].items() if arm != "off"
    )
    epochs = state.get("epochs_by_arm") or {}
    equal = (
        "at epochs of equal cost (" + ", ".join(f"{arm} {n}" for arm, n in epochs.items()) + ")"
        if epochs
        else "at equal epochs, not at equal compute"
    )
    if ratios:
        lines.append(f"arms are compared {equal}; FLOPs of a training step against off: {ratios}")
    lines += [
        f"report      {this.folder / 'report' / 'index.html'}   (open it in a browser)",
        f"MLflow      {state.get('mlflow', {}).get('uri')}   (python -m orchestrator ui)",
        f"champion    {this.folder / state['champion']['checkpoint']}   (python -m orchestrator evaluate | predict | demo)",
    ]
    return "\n".join(lines)


def confirmed(this: Run) -> dict[str, str]:
    """Mean and seeds of each arm's confirmation."""
    found: dict[str, list[float]] = {}
    for r in this.ledger():
        if r["stage"] == "confirm" and r["state"] == "done":
            found.setdefault(r["arm"], []).append(r["history"][-1]["val/mIoU"])
    return {
        arm: f"{sum(v) / len(v):.3f} over {len(v)} fresh seeds ({', '.join(f'{x:.3f}' for x in v)})"
        for arm, v in found.items()
    }
