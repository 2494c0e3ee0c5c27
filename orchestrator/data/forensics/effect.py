"""Say what the differences of two copies of a data set do to the score of an evaluation."""

from typing import Any

from aml.errors import UserError
from orchestrator.data.forensics.diff import MASK, MISSING


def score_effect(
    found: dict[str, Any], about: dict[str, Any], rows: list[dict[str, Any]], folder: str
) -> dict[str, dict[str, Any]]:
    """Return by split which sentences of an evaluation on copy A copy B leaves as they are.

    A sentence falls away where B lacks it or its ref, or has it in another split; it changes where
    its mask or text differs: its score on B is then not known without predicting again.

    Args:
        found: The result of `diff_shards`.
        about: about.json of an evaluation on copy A.
        rows: Its rows, of which those without corruption count.
        folder: What a message calls the evaluation.

    Returns:
        {split: {"fall_away", "change", "left": numbers of sentences, "new": sentences of B's split
        that were not scored, "mIoU" and "oIoU": [of all, of those left], None of none}}

    Raises:
        UserError: The evaluation was not on copy A.
    """
    if about["data"]["fingerprint"] != found["a"]["fingerprint"]:
        raise UserError(
            f"{folder} scored shards of fingerprint {about['data']['fingerprint']}, but "
            f"{found['a']['uri']} has {found['a']['fingerprint']}; name first the copy that it was "
            "evaluated on"
        )
    refs = {ref["ref_id"]: ref for ref in found["refs"]}
    clean = [row for row in rows if not row["severity"]]
    effects = {}
    for split in dict.fromkeys(row["split"] for row in clean):
        of_split = [row for row in clean if row["split"] == split]
        states = [_state(refs.get(row["ref_id"]), row) for row in of_split]
        left = [row for row, state in zip(of_split, states, strict=True) if state == "left"]
        scores = [_scores(of_split), _scores(left)]
        effects[split] = {
            "n": len(of_split),
            **{state: states.count(state) for state in ("fall_away", "change", "left")},
            "new": sum(_new(ref, split) for ref in found["refs"]),
            **{name: [s[name] for s in scores] for name in ("mIoU", "oIoU")},
        }
    return effects


def effect_lines(effects: dict[str, dict[str, Any]]) -> list[str]:
    """Return the effects on a score as lines for a person, scores in %."""
    lines = []
    for split, effect in effects.items():
        shown = [
            f"{name} {100 * before:.2f} -> "
            + ("none" if after is None else f"{100 * after:.2f} ({100 * (after - before):+.2f})")
            for name in ("mIoU", "oIoU")
            for before, after in [effect[name]]
        ]
        lines.append(
            f"{split}: of {effect['n']} scored sentences {effect['fall_away']} fall away, "
            f"{effect['change']} change, {effect['left']} are left; {effect['new']} new ones were "
            f"not scored; over those left {', '.join(shown)}"
        )
    return lines


def _state(ref: dict[str, Any] | None, row: dict[str, Any]) -> str:
    if ref is None:
        return "left"
    texts = ref.get("sentences", {}).get(str(row["sent_id"]))
    other_split = ref["split"][1] != row["split"]
    if MISSING in ref["kinds"] or other_split or (texts and texts[1] is None):
        return "fall_away"
    return "change" if MASK in ref["kinds"] or texts else "left"


def _new(ref: dict[str, Any], split: str) -> int:
    """Return how many sentences of a ref copy B has in a split in which copy A had them not."""
    before, after = ref["split"]
    if after != split:
        return 0
    new = sum(texts[0] is None for texts in ref.get("sentences", {}).values())
    if before not in (None, split):  # all that B has came with the ref
        new = sum(texts[1] is not None for texts in ref.get("sentences", {}).values())
        new += ref["unchanged"]
    return new


def _scores(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return mIoU and oIoU of some rows, None where there are none."""
    import torch

    from aml.metrics import score

    if not rows:
        return {"mIoU": None, "oIoU": None}
    values = {
        name: torch.tensor([row[name] for row in rows])
        for name in ("intersection", "union", "no_target", "called_empty")
    }
    sums = score(
        values["intersection"],
        values["union"],
        no_target=values["no_target"],
        empty=values["called_empty"],
    )
    scores = sums.scores()
    return {name: scores[name] for name in ("mIoU", "oIoU")}
