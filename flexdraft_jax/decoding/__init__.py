"""Decoding: acceptance, verify length, the steps, the compiled loop, and `generate` on top."""
