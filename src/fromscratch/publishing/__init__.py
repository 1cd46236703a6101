"""Models in and models out: import from other programs, export for them, the Hugging Face Hub."""
