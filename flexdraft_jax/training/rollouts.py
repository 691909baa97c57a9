"""On-policy text: responses that the target itself writes, greedily, to training prompts.

A drafter has to guess what its target says, not what people say; responses of the target's own are
worth more than any other part of the recipe. They are written in chunks, one file each, so that an
interrupted run continues with the first chunk that is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from flexdraft_jax.data.chat import EncodedTurn, encode_turn
from flexdraft_jax.data.corpus import Domain, train_turns
from flexdraft_jax.evaluation.measure import answer_prompts
from flexdraft_jax.models.target import Target
from flexdraft_jax.training.config import RolloutConfig


@dataclass(frozen=True)
class _Chunk:
    """Prompts that are answered together and stored in one file.

    Attributes:
        name: of the file, without its extension.
        domain: of all its prompts.
        start: index of the first prompt among the domain's.
        count: how many.
    """

    name: str
    domain: Domain
    start: int
    count: int


def write_rollouts(
    target: Target,
    tokenizer: PreTrainedTokenizerBase,
    config: RolloutConfig,
    directory: Path,
    advance: Callable[[int], None] = lambda finished: None,
) -> list[EncodedTurn]:
    """Answers the configured prompts, or reads the answers that are there already.

    Args:
        target: writes the responses.
        tokenizer: of the target.
        config: which prompts, how many, how long.
        directory: for the chunk files; belongs to one target and one configuration.
        advance: called with the number of rollouts that were just finished.

    Returns:
        Prompts with their responses, in an order that depends on nothing but `config`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    turns: list[EncodedTurn] = []
    for chunk in _chunks(config):
        path = directory / f"{chunk.name}.json"
        if not path.exists():
            answered = _answer(target, tokenizer, config, chunk)
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(answered))
            unfinished.rename(path)  # Whole or not there at all.
        for prompt, response in json.loads(path.read_text()):
            mask = [False] * len(prompt) + [True] * len(response)
            turns.append(EncodedTurn(prompt + response, mask))
        advance(chunk.count)
    return turns


def target_fingerprint(target: Target) -> str:
    """A hash of the target's configuration and weights, to tell models apart."""
    digest = hashlib.sha256(repr(target.config).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(target.params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _chunks(config: RolloutConfig) -> Iterator[_Chunk]:
    """Chunks of every domain in turn; prompts of one domain take about equally long to answer."""
    share, rest = divmod(config.rollouts, len(config.domains))
    counts = [share + (index < rest) for index in range(len(config.domains))]
    for number, start in enumerate(range(0, max(counts), config.chunk_size)):
        for domain, count in zip(config.domains, counts, strict=True):
            size = min(config.chunk_size, count - start)
            if size > 0:
                yield _Chunk(f"{domain}_{number:05d}", domain, start, size)


def _answer(
    target: Target, tokenizer: PreTrainedTokenizerBase, config: RolloutConfig, chunk: _Chunk
) -> list[tuple[list[int], list[int]]]:
    turns = train_turns(chunk.domain, config.seed)
    prompts = [
        encode_turn(tokenizer, turn.prompt, None).tokens
        for turn in islice(turns, chunk.start, chunk.start + chunk.count)
    ]
    answers = answer_prompts(
        target,
        None,
        tokenizer,
        prompts,
        schedule="ar",
        max_new_tokens=config.max_new_tokens,
        batch_size=config.chunk_size,
    )
    return [(prompt, answer.tokens) for prompt, answer in zip(prompts, answers, strict=True)]
