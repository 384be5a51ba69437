"""What the signatures of a version are called: for whoever reads one without TensorFlow too."""

from contract.signature import IMAGE_BYTES as IMAGE_BYTES
from contract.signature import UINT8 as UINT8

CLASSIFY = "classify"
PREDICT_IMAGES = "predict_images"

TUTORIAL_VALUES = 784
"""Values of an MNIST image, as TensorFlow Serving's tutorial client sends them."""

ENCODED_FEATURE = "image/encoded"
"""The feature of a tf.Example that holds a file, as in TensorFlow's own image data sets."""
