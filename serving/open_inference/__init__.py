"""The Open Inference Protocol v2 beside TensorFlow Serving's API: KServe's and Triton's clients."""
