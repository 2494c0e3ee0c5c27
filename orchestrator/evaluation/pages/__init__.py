"""HTML pages: the demo, the masking preview, pictures and statistics of a data set."""
