"""Configuration of a language model trained with fromscratch; loaded by transformers' Auto classes."""

from transformers import PretrainedConfig

# transformers keeps one model class per configuration class. This file imports the model's files, so that
# models with different mechanisms get different classes.
# MODEL FILES


DEFAULTS = {
    "vocab_size": 50257,
    "max_position_embeddings": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_size": 768,
    "dropout": 0.0,
    "attention_bias": True,
    "tie_word_embeddings": True,
    "residual_dtype": None,
    "head_dim": None,
    "use_cache": True,
    "initializer_range": 0.02,
    "fromscratch_model": None,
}


class FromScratchConfig(PretrainedConfig):
    """The model's sizes, under the names that transformers expects. ``slots.py`` defines its mechanisms."""

    model_type = "fromscratch"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012 (transformers reads a list)
    attribute_map = {  # noqa: RUF012
        "context_length": "max_position_embeddings",
        "embedding_dim": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
    }

    def __init__(self, **kwargs):
        values = {name: kwargs.pop(name, default) for name, default in DEFAULTS.items()}
        for name, value in values.items():
            setattr(self, name, value)
        super().__init__(tie_word_embeddings=self.tie_word_embeddings, **kwargs)
        self.tie_word_embeddings = values["tie_word_embeddings"]
