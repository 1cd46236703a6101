"""Measures training on this machine: speed, memory and the fastest micro-batch."""
