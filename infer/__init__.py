"""Scripts that decode and measure; `python -m flexdraft_jax.infer.demo` where installed."""
