"""The commands, a module each, in the order of the help text."""

from __future__ import annotations

from clients.commands import doctor, load, on_device, parity, predict, replay, status

COMMANDS = (status, predict, parity, on_device, load, doctor, replay)
