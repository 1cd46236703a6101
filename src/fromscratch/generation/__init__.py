"""Text generation: decoders, sampling, prompts and chat."""
