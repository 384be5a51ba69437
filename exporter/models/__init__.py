"""The model that is exported, whatever it was given as, behind one interface."""
