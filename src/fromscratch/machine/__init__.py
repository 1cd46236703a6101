"""The machine at hand: device, precision, memory, and what makes a model faster on it."""
