"""Hugging Face's ways to decode the same weights, as the benchmark calls them."""

import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flexdraft_jax.checkpoints.hf import save_target
from flexdraft_jax.evaluation.methods import Method
from flexdraft_jax.evaluation.peers import HuggingFace, has_torch
from flexdraft_jax.models.target import Target
from flexdraft_jax.parallel.mesh import mesh_of

_NO_TORCH = "PyTorch is not installed"
# Whether it decodes, too: where it would on the same device and in the same dtype, never, always.
PEERS = ("auto", "none", "huggingface")

# Tokens that Hugging Face's prompt lookup drafts: the default of its candidate generator.
_PROMPT_LOOKUP = 10


def skipped_peer(target: Target, peers: str) -> str:
    """Why Hugging Face's decoding is left out; "" where it isn't.

    Args:
        target: the model.
        peers: of `PEERS`.
    """
    if peers == "none":
        return "peers=none"
    if peers == "auto" and not _is_alike(target):
        return "it decodes on the CPU in float32 alone; peers=huggingface has it all the same"
    return "" if has_torch() else _NO_TORCH


def hugging_face(
    target: Target, assistant: str | os.PathLike[str] | None = None, peers: str = "auto"
) -> HuggingFace | None:
    """The same weights in PyTorch; None where `skipped_peer` has a reason.

    Args:
        target: the model.
        assistant: Hugging Face directory of a smaller model, for assisted generation.
        peers: of `PEERS`.

    Raises:
        ValueError: an assistant that can't be read, of another vocabulary, or without the peer; a
            peer that was asked for, without PyTorch.
    """
    reason = skipped_peer(target, peers)
    if not reason:
        with tempfile.TemporaryDirectory() as directory:
            save_target(target, directory)
            return HuggingFace(directory, assistant)
    install = '; pip install "flexdraft_jax[peers]"' if reason == _NO_TORCH else ""
    if assistant is not None:
        raise ValueError(
            f"assistant={os.fspath(assistant)!r}: there is no assisted generation, as Hugging "
            f"Face's decoding is left out: {reason}{install}"
        )
    if peers == "huggingface":
        raise ValueError(f"peers=huggingface: {reason}{install}")
    return None


def describe_peer(peer: HuggingFace | None, reason: str) -> str:
    """What it is, and which of its methods are left out, for a report.

    Args:
        peer: from `hugging_face`.
        reason: of `skipped_peer`.
    """
    if peer is None:
        return f"skipped ({reason})"
    lookup = f"prompt lookup of {_PROMPT_LOOKUP} tokens"
    if peer.assistant is None:
        assisted = "assisted generation skipped (no assistant named)"
    else:
        assisted = f"assisted generation by {peer.assistant}, likewise"
    return f"{peer.description}, {lookup}, which it has for batch 1 alone, {assisted}"


def peer_methods(
    peer: HuggingFace | None,
    target: Target,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    stop_token_ids: Sequence[int] | None,
    temperature: float = 0.0,
) -> list[Method]:
    """Plain decoding, and where the batch is one row prompt lookup and assisted generation.

    Their names say so where they don't compute as the target does: on another device, or in
    another dtype.

    Args:
        peer: None has no methods.
        target: the model that they are held against.
        prompts: one batch, to choose the number of threads by.
        num_tokens: of each prompt, at most.
        stop_token_ids: tokens that end a row.
        temperature: 0 is greedy.
    """
    if peer is None:
        return []
    base = "huggingface" if _is_alike(target) else "huggingface on the CPU in float32"
    drafting: dict[str, dict[str, Any]] = {base: {}}
    if len(prompts) == 1:
        drafting[f"{base}, prompt lookup"] = {"prompt_lookup": _PROMPT_LOOKUP}
        if peer.assistant is not None:
            drafting[f"{base}, assisted"] = {"assisted": True}
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
        same_tokens = target.dtype == jnp.float32 and temperature == 0
        methods.append(_method(name, generate, num_tokens, threads, same_tokens))
    return methods


def _is_alike(target: Target) -> bool:
    """Whether the target computes as the peer does: on the CPU, in float32, as one piece."""
    on_cpu = jax.default_backend() == "cpu"
    return on_cpu and target.dtype == jnp.float32 and mesh_of(target.params) is None


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
