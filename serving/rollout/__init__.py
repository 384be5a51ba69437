"""Rollouts: versions go out by label, step by step, and come back with one command."""
