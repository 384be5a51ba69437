"""Flags and files, read and checked before anything starts."""
