"""The trials of a sweep that have ended, and what follows from them."""

import json

from orchestrator.config import Experiment
from orchestrator.reporting import best_compromise, mean_gains, searched_settings
from orchestrator.search.trial_spec import value_of


class TrialResults:
    """Records of the trials that have ended, counted by arm."""

    def __init__(
        self,
        experiment: Experiment,
        epochs: dict[str, int],
        per_arm: int,
        given_configs: dict[str, dict],
    ) -> None:
        """Create the results of a sweep no trial of which has ended.

        Args:
            experiment: The settings of the sweep.
            epochs: Epochs of a trial, by arm.
            per_arm: Search trials of an arm.
            given_configs: Overrides of each arm's one setting where nothing is searched, else {}.
        """
        search = experiment.search
        self.search = search
        self.epochs = epochs
        self.given_configs = given_configs
        self.records: dict[str, dict] = {}
        """Ledger records by trial."""
        self.num_ended = {arm: {"search": 0, "confirm": 0} for arm in search.arms}
        self.epochs_left = {arm: n * (per_arm + search.seeds.confirm) for arm, n in epochs.items()}
        """By arm: epochs of the trials that have not ended, if none of those is stopped."""
        self.epochs_trained = 0
        """By the trials that have ended."""

    def add(self, record: dict) -> None:
        """Add the ledger record of a trial that has ended: done, stopped or failed."""
        arm = record["arm"]
        self.records[record["trial"]] = record
        self.num_ended[arm][record["stage"]] += 1
        self.epochs_left[arm] -= self.epochs[arm]
        self.epochs_trained += record["epochs"]

    def gains(self, record: dict) -> tuple[float, ...] | None:
        """Return the trial's last metrics, so that more is better; None where it lacks one."""
        found = []
        for objective in self.search.objectives:
            value = value_of(record, objective.metric)
            if value is None:
                return None
            found.append(objective.gain(value))
        return tuple(found)

    def score(self, record: dict) -> float | None:
        """Return the first of the trial's last metrics, more is better; None where it has none."""
        objective = self.search.objective
        value = value_of(record, objective.metric)
        return value if value is None else objective.gain(value)

    def best_config(self, arm: str) -> dict | None:
        """Return the arm's best setting: the overrides of `best_record`."""
        record = self.best_record(arm)
        return None if record is None else record["overrides"]

    def best_record(self, arm: str) -> dict | None:
        """Return a record of the arm's best setting; None where no search trial has a value.

        The best setting has the best mean over its search seeds, among those that got furthest.
        By several metrics it is the best compromise (`best_compromise`) of those that have all of
        them; where none has, the first metric decides. Where nothing is searched it is the one
        given.
        """
        if arm in self.given_configs:
            return {"overrides": self.given_configs[arm]}
        by_config: dict[str, list[dict]] = {}
        # By name, so that of equal settings the first by name wins and not the first to end.
        for _, record in sorted(self.records.items()):
            is_search = record["arm"] == arm and record["stage"] == "search"
            if is_search and self.score(record) is not None:
                config = [record["overrides"], record.get("path", [])]
                by_config.setdefault(json.dumps(config, sort_keys=True), []).append(record)
        if not by_config:
            return None
        if compromise := self._compromise(arm):
            return compromise
        return max(by_config.values(), key=self._rank)[0]

    def _compromise(self, arm: str) -> dict | None:
        """Return a record of the best compromise between several metrics; None where none is."""
        objectives = self.search.objectives
        own = (record for record in self.records.values() if record["arm"] == arm)
        settings = searched_settings(own, objectives) if len(objectives) > 1 else {}
        if not settings:
            return None
        gains = {key: mean_gains(records, objectives) for key, records in settings.items()}
        return settings[best_compromise(gains)][0]

    def _rank(self, records: list[dict]) -> tuple[int, float]:
        furthest = max(record["epochs"] for record in records)
        last = [self.score(record) or 0.0 for record in records if record["epochs"] == furthest]
        return furthest, sum(last) / len(last)

    def num_configs_tried(self) -> dict[str, int]:
        """Return the number of distinct settings searched, by arm."""
        tried: dict[str, set[str]] = {arm: set() for arm in self.search.arms}
        for record in self.records.values():
            if record["stage"] == "search":
                history = record.get("path") or [[0, record["overrides"]]]
                tried[record["arm"]] |= {
                    json.dumps(overrides, sort_keys=True) for _, overrides in history
                }
        return {arm: len(configs) for arm, configs in tried.items()}

    def missing_confirmations(self) -> dict[str, int]:
        """Return the number of confirmation trials that each arm lacks, where it lacks any."""
        wanted = self.search.seeds.confirm
        done = dict.fromkeys(self.search.arms, 0)
        for record in self.records.values():
            if record["stage"] == "confirm" and record["state"] == "done":
                done[record["arm"]] += 1
        return {arm: wanted - n for arm, n in done.items() if n < wanted}
