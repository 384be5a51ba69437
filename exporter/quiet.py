"""What TensorFlow reads from the environment when it is imported."""

from __future__ import annotations

import os


def silence_tensorflow() -> None:
    """Keeps start-up chatter off the terminal; call it first thing in a process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # An export is three processes; each would take all of a GPU's memory.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
