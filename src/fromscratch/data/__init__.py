"""Texts to tokens: preparation, the token store, and the batches of a run."""
