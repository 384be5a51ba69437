"""Which versions exist, which are aspired, and the life cycle of each."""
