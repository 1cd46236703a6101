"""The run directory on disk: paths, records, checkpoints, charts. Imports no torch."""
