"""Train a model with masked learning: learner, epoch loop, losses, optimizer, checkpoints.

May import: aml.models and what it may import.
Public names: ENDED, EvalConfig, Learner, OptimConfig, PRECISIONS, StepCost, TrainConfig,
    TrainSums, VOCABULARY, check_weights, counted_epochs, drop_checkpoint_drafts, judged_by,
    keep_freed_memory, load_model, load_training, load_weights, make_learner_and_batch,
    probe_indices, read_checkpoint_config, sample_losses, save_checkpoint, score_batch,
    segment_logits, step_flops, step_seconds, synchronize, timed_steps, train_epochs,
    usable_checkpoint, vacuous_mask, whole_image_logits.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
