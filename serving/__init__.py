"""TensorFlow Serving's API, embedded in a Python process or in a container."""
