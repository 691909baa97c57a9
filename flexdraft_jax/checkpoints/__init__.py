"""Checkpoints on disk: Hugging Face targets and the published draft format, in and out."""
