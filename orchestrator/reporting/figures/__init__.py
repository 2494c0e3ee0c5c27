"""Draw the report's figures: maps over settings, curves over epochs, and their common style."""
