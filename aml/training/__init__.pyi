from .checkpoint import (
    check_weights as check_weights,
    drop_checkpoint_drafts as drop_checkpoint_drafts,
    load_model as load_model,
    load_training as load_training,
    load_weights as load_weights,
    save_checkpoint as save_checkpoint,
    usable_checkpoint as usable_checkpoint,
)
from .checkpoint_config import (
    read_assets as read_assets,
    read_checkpoint_config as read_checkpoint_config,
)
from .config import (
    EvalConfig as EvalConfig,
    OptimConfig as OptimConfig,
    TrainConfig as TrainConfig,
    counted_epochs as counted_epochs,
    judged_by as judged_by,
)
from .learner import (
    ENDED as ENDED,
    Learner as Learner,
)
from .loop import (
    probe_indices as probe_indices,
    train_epochs as train_epochs,
    vacuous_mask as vacuous_mask,
)
from .losses import (
    sample_losses as sample_losses,
)
from .memory import keep_freed_memory as keep_freed_memory
from .profile import (
    VOCABULARY as VOCABULARY,
    StepCost as StepCost,
    make_learner_and_batch as make_learner_and_batch,
    step_flops as step_flops,
    step_seconds as step_seconds,
    synchronize as synchronize,
    timed_steps as timed_steps,
)
from .scoring import (
    TrainSums as TrainSums,
    score_batch as score_batch,
    segment_logits as segment_logits,
    whole_image_logits as whole_image_logits,
)
from .world import PRECISIONS as PRECISIONS
