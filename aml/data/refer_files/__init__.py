"""Find the files of a data set in REFER's format, and read its refs."""
