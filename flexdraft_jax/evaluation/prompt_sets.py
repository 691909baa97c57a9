"""Prompts to measure with: of the built-in domains, of similar length; of public benchmarks."""

import dataclasses
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from flexdraft_jax.data.chat import encode_turn
from flexdraft_jax.data.corpus import DOMAINS, Domain
from flexdraft_jax.data.held_out import HeldOutPrompt, default_prompts
from flexdraft_jax.data.tasks import TASKS, TaskMissingError, encode_task, load_task
from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.decoding.sizes import Sizes, sizes_for
from flexdraft_jax.evaluation.loading import Models

KNOWN_TASKS = (*DOMAINS, *TASKS)

_Name = TypeVar("_Name", bound=str)


def same_bucket(
    domains: Mapping[_Name, Sequence[Sequence[int]]], max_new_tokens: int, block_size: int
) -> dict[_Name, list[int]]:
    """Picks prompts that one compiled program per schedule serves, in all domains.

    Programs are compiled per bucket of lengths. The bucket taken is the one that most prompts of
    every domain are in.

    Args:
        domains: lists of token ids, per domain.
        max_new_tokens: budget of each prompt.
        block_size: n of the schedules that draft.

    Returns:
        Indices of the prompts in the bucket, per domain, in order; empty lists where no bucket
        has prompts of all domains.
    """

    def programs(prompt: Sequence[int]) -> tuple[Sizes, Sizes]:
        row = [Request(tuple(prompt), max_new_tokens)]
        return sizes_for(row, 1), sizes_for(row, block_size)

    members: dict[tuple[Sizes, Sizes], dict[_Name, list[int]]] = defaultdict(
        lambda: {domain: [] for domain in domains}
    )
    for domain, prompts in domains.items():
        for i, prompt in enumerate(prompts):
            members[programs(prompt)][domain].append(i)
    return max(members.values(), key=lambda per_domain: math.prod(map(len, per_domain.values())))


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """Held-out prompts of one domain.

    Attributes:
        texts: with their reference answers.
        tokens: the same as turns of a user.
    """

    texts: list[HeldOutPrompt]
    tokens: list[list[int]]


def similar_prompts(
    tokenizer: PreTrainedTokenizerBase,
    num_prompts: int,
    max_new_tokens: int,
    block_size: int,
    domains: Sequence[Domain] = DOMAINS,
) -> dict[Domain, PromptSet]:
    """The first held-out prompts of the domains in one bucket of lengths, as `same_bucket` picks.

    Raises:
        ValueError: a domain has fewer of them than `num_prompts`.
    """
    texts = {domain: default_prompts(domain) for domain in domains}
    tokens = {
        domain: [encode_turn(tokenizer, prompt.prompt, None).tokens for prompt in texts[domain]]
        for domain in domains
    }
    picked = {}
    for domain, rows in same_bucket(tokens, max_new_tokens, block_size).items():
        if len(rows) < num_prompts:
            raise ValueError(
                f"num_prompts={num_prompts}: must be at most {len(rows)}, the {domain} prompts of "
                "similar length"
            )
        chosen = rows[:num_prompts]
        picked[domain] = PromptSet(
            [texts[domain][i] for i in chosen], [tokens[domain][i] for i in chosen]
        )
    return picked


@dataclasses.dataclass(frozen=True)
class TaskPrompts:
    """What was taken of one task.

    Attributes:
        tokens: of the prompts taken.
        num_known: how many prompts the task has.
    """

    tokens: list[list[int]]
    num_known: int


def task_prompts(
    models: Models,
    tasks: Sequence[str],
    tasks_dir: str | os.PathLike[str] | None,
    num_prompts: int,
    max_new_tokens: int,
    block_size: int,
) -> tuple[dict[str, TaskPrompts], dict[str, str]]:
    """Prompts of the built-in domains, and the first ones that fit of public benchmarks.

    Args:
        models: whose tokenizer and longest text count.
        tasks: of `KNOWN_TASKS`.
        tasks_dir: as for `load_task`.
        num_prompts: of each task.
        max_new_tokens: budget of each prompt.
        block_size: n of the schedules that draft; prompts of the built-in domains are of similar
            length with it.

    Returns:
        Prompts by task, and why a task was left out: there are no files of it, or too few of its
        prompts fit.

    Raises:
        ValueError: a broken file, too few prompts of a built-in domain, or no task is left.
    """
    domains = [domain for domain in DOMAINS if domain in tasks]
    found: dict[str, TaskPrompts] = {}
    skipped = {}
    if domains:
        sets = similar_prompts(models.tokenizer, num_prompts, max_new_tokens, block_size, domains)
        found |= {
            domain: TaskPrompts(prompts.tokens, len(default_prompts(domain)))
            for domain, prompts in sets.items()
        }
    longest = models.target.config.max_position_embeddings - max_new_tokens
    for task in (task for task in tasks if task not in domains):
        try:
            encoded = encode_task(models.tokenizer, load_task(task, tasks_dir))
        except TaskMissingError as error:
            skipped[task] = str(error)
            continue
        fitting = [prompt for prompt in encoded if len(prompt) <= longest]
        if len(fitting) < num_prompts:
            skipped[task] = (
                f"num_prompts={num_prompts} must be at most {len(fitting)}: of its {len(encoded)} "
                f"prompts so many leave room for max_new_tokens={max_new_tokens}"
            )
        else:
            found[task] = TaskPrompts(fitting[:num_prompts], len(encoded))
    if not found:
        reasons = "; ".join(f"{task} ({reason})" for task, reason in skipped.items())
        raise ValueError(f"tasks: no prompts for any of them: {reasons}")
    return {task: found[task] for task in tasks if task in found}, skipped
