from .checkpoint import (
    drop_checkpoint_drafts as drop_checkpoint_drafts,
)
from .checkpoint import (
    load_model as load_model,
)
from .checkpoint import (
    load_training as load_training,
)
from .checkpoint import (
    load_weights as load_weights,
)
from .checkpoint import (
    read_checkpoint_config as read_checkpoint_config,
)
from .checkpoint import (
    save_checkpoint as save_checkpoint,
)
from .checkpoint import (
    usable_checkpoint as usable_checkpoint,
)
from .config import (
    PRECISIONS as PRECISIONS,
)
from .config import (
    EvalConfig as EvalConfig,
)
from .config import (
    OptimConfig as OptimConfig,
)
from .config import (
    TrainConfig as TrainConfig,
)
from .learner import (
    ENDED as ENDED,
)
from .learner import (
    Learner as Learner,
)
from .loop import (
    probe_indices as probe_indices,
)
from .loop import (
    train_epochs as train_epochs,
)
from .loop import (
    vacuous_mask as vacuous_mask,
)
from .losses import (
    sample_losses as sample_losses,
)
from .profile import (
    VOCABULARY as VOCABULARY,
)
from .profile import (
    make_learner_and_batch as make_learner_and_batch,
)
from .profile import (
    step_flops as step_flops,
)
from .profile import (
    step_seconds as step_seconds,
)
from .profile import (
    synchronize as synchronize,
)
from .profile import (
    timed_steps as timed_steps,
)
from .scoring import (
    TrainSums as TrainSums,
)
from .scoring import (
    score_batch as score_batch,
)
from .scoring import (
    segment_logits as segment_logits,
)
from .scoring import (
    whole_image_logits as whole_image_logits,
)
