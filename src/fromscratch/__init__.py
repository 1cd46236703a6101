"""Train, compare and publish small language models."""

__version__ = "0.1.0"
