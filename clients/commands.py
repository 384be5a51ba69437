"""The commands, in the order of the help text."""

from __future__ import annotations

from clients import (
    doctor_command,
    load_command,
    on_device_command,
    parity_command,
    predict_command,
    replay_command,
    status_command,
)

COMMANDS = (
    status_command,
    predict_command,
    parity_command,
    on_device_command,
    load_command,
    doctor_command,
    replay_command,
)
