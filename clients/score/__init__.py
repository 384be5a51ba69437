"""Rows by the million, on Ray: units of files in, Parquet out, each row once."""
