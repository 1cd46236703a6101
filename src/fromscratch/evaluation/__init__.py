"""Evaluation of trained models, one measure per file."""
