"""Tokenizers with one interface: bytes, GPT-2, any Hugging Face tokenizer, and trained ones."""
