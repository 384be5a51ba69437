"""The REST face: paths and bodies as TensorFlow Serving reads them, answers as it writes them."""
