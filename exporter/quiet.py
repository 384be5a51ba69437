"""Keeps TensorFlow's start-up chatter off the terminal."""

from __future__ import annotations

import os


def silence_tensorflow() -> None:
    """Sets what TensorFlow reads when it is imported; call it first thing in a process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    # TensorFlow looks for a GPU in any case; without this it tells so on stderr.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
