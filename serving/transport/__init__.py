"""Bytes and connections: HTTP/2, HTTP/1.1 and what both may hold; no word of models."""
