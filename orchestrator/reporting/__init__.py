"""Compare runs and arms: statistics, tables, figures, the HTML report.

May import: orchestrator.evaluation and what it may import.
Public names: ArmSummary, BETTER, CellScores, Difference, Interval, LEVEL, MOST_PAIRS, POWER,
    PREFIX, RobustScore, add_robustness, arm_summaries, best_compromise, by_seed, compare_runs,
    counted, deviation_factors, evaluate_arms, evaluation_tables, find_run_or_part, front_lines,
    interval_lines, log_arms, mean_gains, objectives_of, paired_spread, pairs_needed, paper_table,
    published_lines, robust_scores, search_fronts, searched_settings,
    smallest_detectable_difference, verdict, write_intervals, write_matrix, write_report.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
