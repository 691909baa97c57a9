"""Records what the embedded default drafts at every token of its answers.

    python tests/decoding/record_drafts.py

Writes `recorded_drafts.npz` beside this file, by which `test_flex_replay.py` takes the steps that
flex chooses, without a model; takes minutes. Per domain, for N held-out prompts:

    DOMAIN_length    [N] tokens of the greedy answer
    DOMAIN_survival  [N, T, n - 1] of the block drafted behind the answer's first t tokens
    DOMAIN_accepted  [N, T] how many of its drafts are the answer's next tokens
"""

import pathlib

import numpy as np

import flexdraft_jax as fd
from flexdraft_jax.data.chat import encode_turn
from flexdraft_jax.data.corpus import DOMAINS
from flexdraft_jax.data.held_out import default_prompts
from flexdraft_jax.decoding.batch import start
from flexdraft_jax.decoding.requests import check_requests

_OUTPUT = pathlib.Path(__file__).parent / "recorded_drafts.npz"
_PROMPTS, _TOKENS = 16, 200


def main() -> None:
    """Answers the prompts plainly, then drafts behind every part of every answer."""
    target, draft, tokenizer = fd.load_default()
    settings = {"confidence_threshold": 0.0, "stop_token_ids": target.eos_token_ids}
    drafts = draft.config.block_size - 1
    recorded = {}
    for domain in DOMAINS:
        prompts = [
            encode_turn(tokenizer, prompt.prompt, None).tokens
            for prompt in default_prompts(domain, _PROMPTS)
        ]
        answers = fd.generate(target, None, prompts, _TOKENS, **settings).tokens
        survival = np.zeros((_PROMPTS, _TOKENS, drafts), np.float16)
        accepted = np.zeros((_PROMPTS, _TOKENS), np.uint8)
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            # Reading a prompt ends with the next token and a block behind it.
            parts = [[*prompt, *answer[: t - 1]] for t in range(1, len(answer))]
            parts += parts[-1:] * (_TOKENS - 1 - len(parts))  # One program for all of them.
            requests = check_requests(target.config, parts, _TOKENS, **settings)
            block = start(target, draft, requests, "sequential").state.block
            survival[i, 1 : len(answer)] = block.survival[: len(answer) - 1]
            for t, tokens in enumerate(np.asarray(block.tokens)[: len(answer) - 1], start=1):
                assert tokens[0] == answer[t - 1]
                following = np.array(answer[t : t + drafts])
                equal = tokens[1 : len(following) + 1] == following
                accepted[i, t] = np.cumprod(equal).sum()
            print(f"{domain} {i + 1} of {_PROMPTS}", flush=True)
        recorded[f"{domain}_length"] = np.array([len(answer) for answer in answers])
        recorded[f"{domain}_survival"] = survival
        recorded[f"{domain}_accepted"] = accepted
    np.savez_compressed(_OUTPUT, **recorded)


if __name__ == "__main__":
    main()
