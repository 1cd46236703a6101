"""Reads and writes models, checkpoints and tokenizers, in our formats and those of other programs."""
