from .alignment_ranking import (
    rank_alignments as rank_alignments,
)
from .alignment_ranking import (
    ranking_line as ranking_line,
)
from .baselines import (
    score_baselines as score_baselines,
)
from .breakdown import (
    METRICS as METRICS,
)
from .breakdown import (
    breakdown_lines as breakdown_lines,
)
from .breakdown import (
    check_same_sentences as check_same_sentences,
)
from .breakdown import (
    read_sentence_scores as read_sentence_scores,
)
from .breakdown import (
    robustness_lines as robustness_lines,
)
from .command import (
    evaluate_checkpoint as evaluate_checkpoint,
)
from .command import (
    log_evaluation as log_evaluation,
)
from .data_page import (
    show_data as show_data,
)
from .demo import (
    serve_demo as serve_demo,
)
from .masking_preview import (
    preview_masks as preview_masks,
)
from .prediction import (
    predict_files as predict_files,
)
