"""What answers a signature: LiteRT or TensorFlow, batched, loaded and self-tested."""
