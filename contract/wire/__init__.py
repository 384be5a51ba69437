"""TensorFlow Serving's bytes: messages, the tensor codec, statuses and framing."""
