"""Measurements: each file measures one promise, both sides in one run, and prints what it found."""
