"""Commands of the command line: `render`."""
