"""People's files in, answers out."""
