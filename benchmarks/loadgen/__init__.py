"""Servers started, load made and counted: what the benchmarks share."""
