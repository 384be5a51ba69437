"""How every command speaks: tables, JSON, progress, exit codes, and what a missing extra says."""
