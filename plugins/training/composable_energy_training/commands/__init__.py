"""Commands of the command line: `train` and `recipes`."""
