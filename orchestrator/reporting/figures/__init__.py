"""Figures of the report: maps over settings, curves over epochs, and the style they share."""
