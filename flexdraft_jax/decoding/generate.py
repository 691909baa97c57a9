"""Lists of prompts in, lists of tokens out."""

import functools
import os
from collections.abc import Iterator, Sequence

from jax.sharding import Mesh

from flexdraft_jax.decoding.batch import GenerateOutput, start
from flexdraft_jax.decoding.costs import Profile
from flexdraft_jax.decoding.requests import at_least_one, check_models, check_requests
from flexdraft_jax.decoding.sharing import check_mesh, share_requests
from flexdraft_jax.models.draft import Draft
from flexdraft_jax.models.target import Target


def generate(
    target: Target,
    draft: Draft | None,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int] = 64,
    schedule: str = "flex",
    block_size: int | None = None,
    confidence_threshold: float = 0.01,
    pruning_strategy: str = "cumulative_product",
    stop_token_ids: Sequence[int] | None = None,
    *,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    min_p: float | Sequence[float] = 0.0,
    seed: int | Sequence[int] = 0,
    row_ids: Sequence[int] | None = None,
    sampling: str = "coupled",
    profile: Profile | str | os.PathLike[str] | None = None,
    attention: str = "reference",
    mesh: Mesh | None = None,
) -> GenerateOutput:
    """Decodes; every schedule gives the tokens of plain decoding.

    Prompts of any lengths share a batch. The program is compiled once per bucket of lengths.

    >>> import flexdraft_jax as fd
    >>> target, draft, tokenizer = fd.load_default()
    >>> prompts = [tokenizer.encode("def add(a, b):"), tokenizer.encode("Mia has 6 stamps")]
    >>> out = generate(target, draft, prompts, max_new_tokens=[8, 12], schedule="sequential")
    >>> [len(row) for row in out.tokens], out.finish_reasons
    ([8, 12], ['length', 'length'])
    >>> plain = generate(target, None, prompts, max_new_tokens=[8, 12], schedule="ar")
    >>> out.tokens == plain.tokens
    True

    Args:
        target: the model.
        draft: its trained draft; None decodes plainly.
        prompts: B lists of token ids.
        max_new_tokens: an int, or one per row. 0 gives no tokens.
        schedule: "flex" chooses by cost and confidence, step by step, and needs no help. "ar" is
            plain decoding; "parallel" drafts and verifies in one pass, always; "sequential" in
            two. Only the speed depends on it.
        block_size: n, tokens of a candidate block; the draft's own if None.
        confidence_threshold: drafts less sure than this are not verified; 0 verifies all.
        pruning_strategy: "cumulative_product" or "min_confidence".
        stop_token_ids: tokens that end a row; None stops at no token. `target.eos_token_ids` are
            the model's own.
        temperature: 0 decodes greedily. This and the next four are one number, or one per row.
        top_k: draw from this many most likely tokens; 0 is all of them.
        top_p: draw from the fewest most likely tokens that have this probability together.
        min_p: draw from tokens with at least this share of the largest probability.
        seed: a row's random numbers depend on its seed and its row id alone.
        row_ids: rows of one seed and different ids are independent; 0, 1, 2, ... if None, through
            the rows of all processes that make the call together.
        sampling: how drafts are accepted at temperature > 0. "coupled": target and draft choose
            with the same random numbers, and the tokens are those of plain decoding with that
            seed. "rejection": a little more is accepted, the law of the tokens is that of plain
            decoding, and the tokens themselves depend on the verify lengths.
        profile: measured costs of steps for "flex", or a file of them. None takes the one that
            `infer/measure_steps.py` has written for this model and device, or estimates.
        attention: what computes attention to the cache. "reference" runs anywhere; "pallas" is a
            kernel for TPUs or NVIDIA GPUs that reads of each row what is there; nobody has timed
            it yet.
        mesh: that the weights lie on; None takes it from them. Rows that are missing until they
            divide among its devices are made up. Where it spans several processes, all of them make
            the call together, each with prompts of its own, and the other arguments alike; each
            gets the answers to its own.

    Raises:
        ValueError: an argument out of its range; it is named, with what would be right.
        TypeError: an argument of the wrong kind.
    """
    check_models(target, draft)
    check = functools.partial(
        check_requests,
        target.config,
        prompts,
        max_new_tokens,
        confidence_threshold,
        stop_token_ids,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        row_ids=row_ids,
    )
    requests, own = share_requests(check_mesh(target, draft, mesh), check, row_ids is None)
    decoding = start(
        target,
        draft,
        requests,
        schedule,
        block_size,
        pruning_strategy,
        sampling=sampling,
        profile=profile,
        attention=attention,
        wanted=own,
    )
    decoding.advance()
    return decoding.output()


def stream(
    target: Target,
    draft: Draft | None,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int] = 64,
    schedule: str = "flex",
    block_size: int | None = None,
    confidence_threshold: float = 0.01,
    pruning_strategy: str = "cumulative_product",
    stop_token_ids: Sequence[int] | None = None,
    *,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    min_p: float | Sequence[float] = 0.0,
    seed: int | Sequence[int] = 0,
    row_ids: Sequence[int] | None = None,
    sampling: str = "coupled",
    profile: Profile | str | os.PathLike[str] | None = None,
    attention: str = "reference",
    mesh: Mesh | None = None,
    steps_per_update: int = 1,
) -> Iterator[GenerateOutput]:
    """Like `generate`, but yields all that has been emitted every `steps_per_update` steps.

    >>> import flexdraft_jax as fd
    >>> target, draft, tokenizer = fd.load_default()
    >>> prompts = [tokenizer.encode("def add(a, b):"), tokenizer.encode("Mia has 6 stamps")]
    >>> counts = []
    >>> for out in stream(target, draft, prompts, max_new_tokens=[8, 12], schedule="sequential"):
    ...     counts.append(len(out.tokens[0]))
    >>> counts[0], counts[-1]  # The first token comes from the prompt, before any step.
    (1, 8)

    Raises:
        ValueError: as `generate`, or `steps_per_update` under 1; at the call, not at the first
            update.
    """
    steps_per_update = at_least_one("steps_per_update", steps_per_update)
    check_models(target, draft)
    check = functools.partial(
        check_requests,
        target.config,
        prompts,
        max_new_tokens,
        confidence_threshold,
        stop_token_ids,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        row_ids=row_ids,
    )
    requests, own = share_requests(check_mesh(target, draft, mesh), check, row_ids is None)
    decoding = start(
        target,
        draft,
        requests,
        schedule,
        block_size,
        pruning_strategy,
        sampling=sampling,
        profile=profile,
        attention=attention,
        wanted=own,
    )
    return decoding.updates(steps_per_update)
