"""Rows by the million, on Ray Data: units of files in, Parquet out, each row once."""
