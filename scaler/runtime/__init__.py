"""Carries a function to every rank and its record back: in-process, on Ray, or from a recorded run."""
