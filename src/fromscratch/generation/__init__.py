"""Text from a model: choosing the next token, again and again."""
