"""Which architectures the attention `documents` serves; running a model and planning it ask the same list."""

__all__ = ["SERVED_MODEL_TYPES"]

# Architectures whose packed loss and gradients a test holds to those of their documents alone. What is left out: caps
# on the scores (gemma2), sinks (gpt_oss), layers that carry a state along a row (mamba, qwen3_next), positions that
# do not restart.
SERVED_MODEL_TYPES = frozenset({
    "arcee", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma3_text", "glm", "glm4", "gpt_neox", "granite",
    "helium", "hunyuan_v1_dense", "llama", "ministral", "mistral", "mixtral", "olmo", "olmo2", "olmo3",
    "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "starcoder2",
})  # fmt: skip
