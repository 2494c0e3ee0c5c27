from .comparison.groups import (
    find_run_or_part as find_run_or_part,
)
from .comparison.matrix import (
    CellScores as CellScores,
    write_matrix as write_matrix,
)
from .comparison.runs import (
    compare_runs as compare_runs,
)
from .comparison.splits import (
    evaluate_arms as evaluate_arms,
    log_arms as log_arms,
)
from .evidence import (
    evaluation_tables as evaluation_tables,
    published_lines as published_lines,
)
from .export import (
    paper_table as paper_table,
)
from .intervals import (
    interval_lines as interval_lines,
    write_intervals as write_intervals,
)
from .numbers import (
    by_seed as by_seed,
    counted as counted,
)
from .page.summary import (
    BETTER as BETTER,
    verdict as verdict,
)
from .pareto import (
    best_compromise as best_compromise,
    front_lines as front_lines,
    mean_gains as mean_gains,
    objectives_of as objectives_of,
    search_fronts as search_fronts,
    searched_settings as searched_settings,
)
from .report import (
    write_report as write_report,
)
from .robust_arms import (
    PREFIX as PREFIX,
    RobustScore as RobustScore,
    add_robustness as add_robustness,
    robust_scores as robust_scores,
)
from .rows import (
    arm_summaries as arm_summaries,
)
from .significance import (
    LEVEL as LEVEL,
    MOST_PAIRS as MOST_PAIRS,
    POWER as POWER,
    Difference as Difference,
    Interval as Interval,
    deviation_factors as deviation_factors,
    paired_spread as paired_spread,
    pairs_needed as pairs_needed,
    smallest_detectable_difference as smallest_detectable_difference,
)
from .summaries import (
    ArmSummary as ArmSummary,
)
