"""Texts to tokens: sources, preparation, the token store, and the batches of a run."""
