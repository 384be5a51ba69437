"""The usual mistakes: looked for, explained, and the command that mends each."""
