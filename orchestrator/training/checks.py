"""Check an experiment against its model before anything starts."""

from aml.errors import UserError
from aml.models import model_class
from orchestrator.config import Experiment, base_arm


def check_run(experiment: Experiment) -> None:
    """Refuse settings that cannot be trained with."""
    model = model_class(experiment.model["name"])
    if experiment.data.size % model.image_multiple:
        raise UserError(
            f"data.size is {experiment.data.size}, but model {model.name} needs a multiple of {model.image_multiple}; choose one"
        )
    experiment.aml.check(model, experiment.data.size)
    r = experiment.resources
    if r.workers > 1 and 0 < r.gpus_per_worker <= 0.5:
        raise UserError(
            f"resources.workers is {r.workers} and gpus_per_worker {r.gpus_per_worker:g}, so that two workers of a run might lie on one GPU, "
            "over which NCCL joins none; give gpus_per_worker=1, or workers=1, of which several trials share a GPU"
        )


def setting_warnings(experiment: Experiment, arms: list[str]) -> list[str]:
    """What a person should know of settings that are allowed but say less than they seem to."""
    noise = max(float(experiment.model.get(name, 0) or 0) for name in ("dropout", "drop_path"))
    twice = [arm for arm in arms if base_arm(arm) == "two_pass"]
    if twice and not noise:
        return [
            f"{twice[0]}: {experiment.model['name']} has no dropout here, so two passes are one at twice the cost: the arm repeats `off`"
        ]
    return []
