"""Search methods: the settings of an arm, its grid, and samplers of Optuna and Ray Tune."""
