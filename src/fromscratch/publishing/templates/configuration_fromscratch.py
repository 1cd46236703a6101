"""Configuration of a language model trained with fromscratch; loaded by transformers' Auto classes."""

from transformers import PretrainedConfig

# transformers keeps one model class per configuration class. This file imports the model's files, so that
# models with different mechanisms get different classes.
# MODEL FILES


class FromScratchConfig(PretrainedConfig):
    """The model's sizes, under the names that transformers expects. ``slots.py`` defines its mechanisms."""

    model_type = "fromscratch"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (transformers reads a list)
    attribute_map = {  # noqa: RUF012
        "context_length": "max_position_embeddings",
        "embedding_dim": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
    }

    def __init__(
        self,
        vocab_size=50257,
        max_position_embeddings=1024,
        num_hidden_layers=12,
        num_attention_heads=12,
        hidden_size=768,
        dropout=0.0,
        attention_bias=True,
        tie_word_embeddings=True,
        use_cache=True,
        initializer_range=0.02,
        fromscratch_model=None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.hidden_size = hidden_size
        self.dropout = dropout
        self.attention_bias = attention_bias
        self.use_cache = use_cache
        self.initializer_range = initializer_range
        self.fromscratch_model = fromscratch_model
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
        self.tie_word_embeddings = tie_word_embeddings
