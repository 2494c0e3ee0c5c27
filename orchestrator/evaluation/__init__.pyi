from .alignment_ranking import (
    rank_alignments as rank_alignments,
    ranking_line as ranking_line,
)
from .baselines import (
    score_baselines as score_baselines,
)
from .breakdown import (
    breakdown_lines as breakdown_lines,
)
from .command import (
    EvaluationRequest as EvaluationRequest,
    about_data as about_data,
    evaluate_checkpoint as evaluate_checkpoint,
)
from .masks.scoring import (
    MasksRequest as MasksRequest,
    evaluate_masks as evaluate_masks,
)
from .masks.writing import (
    predict_splits as predict_splits,
)
from .mlflow_logging import (
    log_evaluation as log_evaluation,
    log_evaluations as log_evaluations,
)
from .pages.data_page import (
    show_data as show_data,
)
from .pages.demo import (
    serve_demo as serve_demo,
)
from .pages.html_page import (
    html_page as html_page,
)
from .pages.masking_preview import (
    preview_masks as preview_masks,
)
from .prediction import (
    predict_files as predict_files,
)
from .results import (
    check_comparable as check_comparable,
    read_evaluation as read_evaluation,
    read_rows as read_rows,
    read_table as read_table,
)
from .robustness import (
    METRICS as METRICS,
    mean_over_severities as mean_over_severities,
    robustness_lines as robustness_lines,
)
from .samples import (
    check_protocol as check_protocol,
    chosen_splits as chosen_splits,
)
from .together import (
    SharedRequest as SharedRequest,
    evaluate_together as evaluate_together,
    score_conditions as score_conditions,
)
