"""Test that Tune's schedulers stop and pause what they should, and stand where a kill left them."""

import pytest

from aml.training.learner import ENDED
from orchestrator.config.loader import from_text
from orchestrator.sweep.tune.arm_schedulers import PAUSE, STOP, ArmSchedulers

EPOCHS = 9

SCHEDULERS = {
    "asha": "{name: asha, grace: 1, reduction: 3}",
    "async_hyperband": "{name: async_hyperband, grace_period: 1, reduction_factor: 3}",
    "median_stopping_rule": "{name: median_stopping_rule, min_samples_required: 2}",
    "hyperband": "{name: hyperband, reduction_factor: 3}",
}


def make(name: str, per_arm: int) -> ArmSchedulers:
    text = "name: x\ndata: {train: shards}\ntrain: {epochs: 9}\n"
    experiment = from_text(text, [f"search.scheduler={SCHEDULERS[name]}"])
    return ArmSchedulers(experiment, {"off": EPOCHS}, per_arm)


class Simulation:
    """Trials of one arm, some at a time, each of which scores its own number in every epoch."""

    def __init__(self, name: str, scores: list[float], at_a_time: int) -> None:
        self.name = name
        self.scores = {f"off-search-{i:03d}": score for i, score in enumerate(scores)}
        self.at_a_time = at_a_time
        self.arms = make(name, len(scores))
        self.clock = 0.0
        self.histories: dict[str, list[dict]] = {}
        self.queue = list(self.scores)
        self.running: list[str] = []
        self.paused: set[str] = set()
        self.ends: dict[str, str] = {}

    def step(self) -> bool:
        """Train one epoch of the trial that has waited longest; return whether there was one."""
        while self.queue and len(self.running) < self.at_a_time:
            trial = self.queue.pop(0)
            self.running.append(trial)
            self.histories.setdefault(trial, [])
        if not self.running:
            return False
        trial = self.running.pop(0)
        self.clock += 1
        number = len(self.histories[trial]) + 1
        epoch = {"epoch": number, "val/mIoU": self.scores[trial], ENDED: self.clock}
        self.histories[trial].append(epoch)
        if number == EPOCHS:
            self.ends[trial] = "done"
            verdict = self.arms.on_end(trial, "off")
        else:
            verdict = self.arms.on_result(trial, "off", epoch)
            if verdict.decision == STOP:
                self.ends[trial] = "stopped"
            elif verdict.decision == PAUSE:
                self.paused.add(trial)
            else:
                self.running.append(trial)
        for other in verdict.stopped:
            self.paused.remove(other)
            self.ends[other] = "stopped"
        for other in verdict.resumed:
            self.paused.remove(other)
            self.queue.append(other)
        return True

    def kill_and_go_on(self) -> None:
        """Lose the schedulers; new ones are told the histories as the next command would."""
        self.arms = make(self.name, len(self.scores))
        told = {t: ("off", history) for t, history in self.histories.items()}
        stopped, paused = self.arms.replay(told)
        assert stopped == {t for t, end in self.ends.items() if end == "stopped"}
        assert paused == self.paused


def epochs(simulation: Simulation) -> list[int]:
    return [len(simulation.histories[t]) for t in sorted(simulation.histories)]


SCORES = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.5]


@pytest.mark.parametrize("at_a_time", [2, 9])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_best_trial_is_trained_to_its_end_and_bad_ones_are_not(name, at_a_time):
    simulation = Simulation(name, SCORES, at_a_time)
    while simulation.step():
        pass
    assert len(simulation.ends) == 9 and not simulation.paused
    trained = epochs(simulation)
    assert trained[1] == EPOCHS and min(trained) < EPOCHS / 2
    assert sum(trained) < 0.8 * 9 * EPOCHS


@pytest.mark.parametrize("at_a_time", [2, 8])
def test_hyperband_lets_a_third_of_a_bracket_go_on_from_each_rung(at_a_time):
    """With max_t 9 and eta 3 the first bracket of Tune's HyperBand has 3 trials of 9 epochs.

    The second has 5 that are compared at epoch 3, of which 2 go on to epoch 9, the third 9 at 1.
    """
    simulation = Simulation("hyperband", SCORES[:8], at_a_time)
    while simulation.step():
        pass
    assert epochs(simulation)[:3] == [9, 9, 9]
    assert sorted(epochs(simulation)[3:]) == [3, 3, 3, 9, 9]
    assert epochs(simulation)[3] == epochs(simulation)[5] == 9  # scores 0.8 and 0.7


@pytest.mark.parametrize("at_a_time", [2, 4])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_killed_sweep_decides_as_one_that_was_not(name, at_a_time):
    calm = Simulation(name, SCORES, at_a_time)
    while calm.step():
        pass
    killed = Simulation(name, SCORES, at_a_time)
    while killed.step():
        killed.kill_and_go_on()
    assert killed.ends == calm.ends and epochs(killed) == epochs(calm)


def test_a_nan_is_the_worst_and_a_failed_trial_keeps_no_other_waiting():
    simulation = Simulation("asha", [0.1, 0.2, 0.3, float("nan")], at_a_time=4)
    while simulation.step():
        pass
    assert epochs(simulation)[3] == 1
    arms = make("hyperband", 8)
    names = [f"off-search-{i:03d}" for i in range(8)]
    for number in (1, 2, 3):  # trials 3 to 7 are the bracket that is compared at epoch 3
        for name in names[3:7]:
            verdict = arms.on_result(name, "off", {"epoch": number, "val/mIoU": 0.5})
    assert verdict.decision == PAUSE and not verdict.resumed
    assert len(arms.on_end(names[7], "off").resumed) == 2


def test_a_trial_that_failed_before_a_kill_is_not_waited_for_after_it():
    histories = {
        f"off-search-{i:03d}": [
            {"epoch": n, "val/mIoU": i / 10, ENDED: float(10 * n + i)} for n in (1, 2, 3)
        ]
        for i in range(3, 7)
    }
    histories["off-search-007"] = histories["off-search-003"][:1]  # failed after its first epoch
    told = {trial: ("off", history) for trial, history in histories.items()}
    waiting = {f"off-search-{i:03d}" for i in range(3, 7)}
    assert make("hyperband", 8).replay(told) == (set(), waiting)
    stopped, paused = make("hyperband", 8).replay(told, gone=["off-search-007"])
    assert stopped == {"off-search-003", "off-search-004"} and paused == set()
