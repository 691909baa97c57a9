"""FlexDraft in JAX: lossless self-speculative decoding (arXiv 2605.20022)."""
