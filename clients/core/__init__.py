"""What a client does, without any I/O."""
