"""Data sets: checks, splits and fingerprints of what `readers` have read."""
