"""Pages of ours in a browser: who serves them, who runs one that nobody sees, how arrays travel."""
