"""The embedded default, as it ships."""

import flexdraft_jax as fd
from flexdraft_jax.data.chat import encode_turn
from flexdraft_jax.data.held_out import default_prompts


def test_it_drafts_well_and_loses_nothing():
    target, draft, tokenizer = fd.load_default()
    prompts = [
        encode_turn(tokenizer, held_out.prompt, None).tokens
        for held_out in default_prompts("word_problems")[:4]
    ]
    settings = {"max_new_tokens": 120, "stop_token_ids": target.eos_token_ids}
    plain = fd.generate(target, None, prompts, schedule="ar", **settings)
    drafted = fd.generate(
        target, draft, prompts, schedule="sequential", confidence_threshold=0.0, **settings
    )
    assert drafted.tokens == plain.tokens
    assert drafted.tau > 4  # of n = 8; a draft that has learnt nothing comes to about 1
