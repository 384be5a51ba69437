"""Models, loops, checkpoints and runs: from a dataset to a trained model."""
