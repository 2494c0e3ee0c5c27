"""Compare two copies of a data set, and find evaluation pictures in training data."""
