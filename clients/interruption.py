"""Ctrl-C that says what was kept."""

from __future__ import annotations


class Interrupted(KeyboardInterrupt):
    """Raised in place of KeyboardInterrupt; its text names the partial output."""
