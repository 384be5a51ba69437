"""What each method answers, whatever the protocol."""
