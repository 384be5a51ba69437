"""`python -m serving container`: the same flags and files, served from an image."""
