"""What outputs and targets are for: told from labels and answers, and measured."""
