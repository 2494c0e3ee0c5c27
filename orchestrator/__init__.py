"""Everything that knows a cluster: shards, Ray Train, Ray Tune, MLflow, evaluation, the report and the command line."""
