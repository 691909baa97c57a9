"""Hugging Face's ways to decode the same weights, as the benchmark calls them."""

import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from flexdraft_jax.checkpoints.hf import save_target
from flexdraft_jax.evaluation.methods import Method
from flexdraft_jax.evaluation.peers import HuggingFace, has_torch
from flexdraft_jax.models.target import Target

# Tokens that Hugging Face's prompt lookup drafts: the default of its candidate generator.
_PROMPT_LOOKUP = 10


def hugging_face(
    target: Target, assistant: str | os.PathLike[str] | None = None
) -> HuggingFace | None:
    """The same weights in PyTorch; None where it isn't installed.

    Args:
        target: the model.
        assistant: Hugging Face directory of a smaller model, for assisted generation.

    Raises:
        ValueError: an assistant that can't be read, of another vocabulary, or without PyTorch.
    """
    if not has_torch():
        if assistant is not None:
            raise ValueError(
                f"assistant={os.fspath(assistant)!r}: assisted generation needs PyTorch, which is "
                'not installed; pip install "flexdraft_jax[peers]"'
            )
        return None
    with tempfile.TemporaryDirectory() as directory:
        save_target(target, directory)
        return HuggingFace(directory, assistant)


def describe_peer(peer: HuggingFace | None) -> str:
    """What it is, and which of its methods are left out, for a report."""
    if peer is None:
        return "skipped (PyTorch is not installed)"
    lookup = f"prompt lookup of {_PROMPT_LOOKUP} tokens"
    if peer.assistant is None:
        assisted = "assisted generation skipped (no assistant named)"
    else:
        assisted = f"assisted generation by {peer.assistant}, likewise"
    return f"{peer.description}, {lookup}, which it has for batch 1 alone, {assisted}"


def peer_methods(
    peer: HuggingFace | None,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    stop_token_ids: Sequence[int] | None,
    temperature: float = 0.0,
    same_precision: bool = True,
) -> list[Method]:
    """Plain decoding, and where the batch is one row prompt lookup and assisted generation.

    Args:
        peer: None has no methods.
        prompts: one batch, to choose the number of threads by.
        num_tokens: of each prompt, at most.
        stop_token_ids: tokens that end a row.
        temperature: 0 is greedy.
        same_precision: whether the target computes in float32, as the peer does.
    """
    if peer is None:
        return []
    drafting: dict[str, dict[str, Any]] = {"huggingface": {}}
    if len(prompts) == 1:
        drafting["huggingface, prompt lookup"] = {"prompt_lookup": _PROMPT_LOOKUP}
        if peer.assistant is not None:
            drafting["huggingface, assisted"] = {"assisted": True}
    methods = []
    for name, options in drafting.items():
        threads = peer.fastest_threads(prompts, temperature=temperature, **options)
        generate = functools.partial(
            peer.generate,
            num_threads=threads,
            stop_token_ids=stop_token_ids,
            temperature=temperature,
            **options,
        )
        same_tokens = same_precision and temperature == 0
        methods.append(_method(name, generate, num_tokens, threads, same_tokens))
    return methods


def _method(
    name: str,
    generate: Callable[..., list[list[int]]],
    num_tokens: int,
    threads: int,
    same_tokens: bool,
) -> Method:
    return Method(
        f"{name}, {threads} thread{'s' if threads > 1 else ''}",
        1,
        lambda batch: (generate(batch, num_tokens=num_tokens), []),
        first_token=functools.partial(generate, num_tokens=1),
        same_tokens=same_tokens,
        compiles=False,
    )
