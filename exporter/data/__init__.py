"""Data sets: readers of files, checks, splits and fingerprints."""
