"""The commands of `python -m clients`, a module each: its flags, its work, what it prints."""
