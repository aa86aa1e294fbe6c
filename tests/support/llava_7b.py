"""The text model of LLaVA-1.5-7B, for what depends on its size alone."""

from vlmbatch.models.text_config import TextConfig

TEXT = TextConfig(
    model_type="llama",
    vocab_size=32_064,
    hidden_size=4096,
    intermediate_size=11_008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    rms_norm_eps=1e-5,
    max_position_embeddings=4096,
    sliding_windows=(None,) * 32,
)
