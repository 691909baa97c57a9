"""Scripts that train; `python -m flexdraft_jax.train.train_draft` where installed."""
