"""What must be installed before anything is started: one sentence instead of an ImportError."""

from __future__ import annotations

import importlib.util

from contract.errors import UnimplementedError

_NEEDED = ("tensorflow", "tf_keras", "PIL")


def require_tensorflow() -> None:
    """Finds out, without importing it, whether TensorFlow and what goes with it are there.

    Raises:
        UnimplementedError: The extra `tensorflow` is not installed.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UnimplementedError(
            f"this command needs TensorFlow, and {', '.join(missing)} is not installed; install "
            "the extra with: pip install 'plumbline-tf[tensorflow]'"
        )
