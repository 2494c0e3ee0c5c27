"""Estimates: time, money and seeds that a sweep needs, before it starts and while it runs."""
