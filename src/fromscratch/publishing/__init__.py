"""Imports and exports models; uploads them to the Hugging Face Hub."""
