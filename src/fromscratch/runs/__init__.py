"""The run directory on disk: where things are, and how to read and write them without torch."""
