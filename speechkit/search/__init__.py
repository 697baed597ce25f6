"""Searches: pure functions from frame log-probabilities and lengths to hypotheses and alignments."""
