"""A file for each command: `add` gives it arguments; `does` is what it does."""
