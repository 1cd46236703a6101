"""The Hugging Face Hub: names, downloads, errors."""
