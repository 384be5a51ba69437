"""Ratios against the alternatives, one command each; see README.md."""
