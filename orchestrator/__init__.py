"""Run experiments on a cluster: shards, Ray Train, Ray Tune, MLflow, evaluation, reports, commands.

Its packages import each other in one direction; pyproject.toml has their order.
"""
