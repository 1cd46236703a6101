"""The models, one file per mechanism, and what they cost."""
