"""From a candidate to a version: staging, locks, one rename; local and remote."""
