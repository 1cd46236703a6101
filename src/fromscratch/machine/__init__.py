"""The machine: device, memory, precision, and acceleration of a model."""
