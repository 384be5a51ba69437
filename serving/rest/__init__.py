"""The REST server: paths and bodies as TensorFlow Serving reads them, answers as it writes them."""
