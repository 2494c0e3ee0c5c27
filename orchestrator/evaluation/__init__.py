"""Score checkpoints, predict, rank alignments, preview masks, show data.

May import: orchestrator.tracking and what it may import.
Public names: METRICS, EvaluationRequest, MasksRequest, SharedRequest, about_data,
    breakdown_lines, check_comparable, check_protocol, chosen_splits, evaluate_checkpoint,
    evaluate_masks, evaluate_together, html_page, log_evaluation, log_evaluations,
    mean_over_severities, predict_files, predict_splits, preview_masks,
    rank_alignments, ranking_line, read_evaluation, read_rows, read_table, robustness_lines,
    score_baselines, score_conditions, serve_demo, show_data.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
