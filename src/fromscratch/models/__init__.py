"""The models: one file per kind and per mechanism, and what they cost."""
