"""Dataset → train → export → verify → publish: the side of Plumbline that runs TensorFlow."""
