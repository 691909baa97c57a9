"""One prompt answered as it is decoded."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flexdraft_jax.data import chat
from flexdraft_jax.data.chat import Message
from flexdraft_jax.data.conversations import is_unicode
from flexdraft_jax.decoding.generate import stream
from flexdraft_jax.decoding.rows import GenerateOutput
from flexdraft_jax.evaluation.decode_speed import measure_decoding
from flexdraft_jax.evaluation.decode_tables import decode_table
from flexdraft_jax.evaluation.loading import Models
from flexdraft_jax.evaluation.methods import schedule_method
from flexdraft_jax.evaluation.tables import Table
from flexdraft_jax.evaluation.text import Piece, PieceReader


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """How to decode; the fields are those of `generate`, with the target's own stop tokens.

    Attributes:
        max_new_tokens: budget.
        schedule: "flex", "ar", "parallel" or "sequential".
        block_size: n; the draft's own if None.
        confidence_threshold: 0 verifies every draft.
        temperature: 0 decodes greedily; the fields below count for a higher one alone.
        top_k: most likely tokens that may be drawn; 0 is all of them.
        top_p: draw from the fewest most likely tokens that have this probability together.
        min_p: draw from tokens with at least this share of the largest probability.
        seed: of the random numbers.
        sampling: "coupled" or "rejection".
        attention: "reference" or "pallas".
    """

    max_new_tokens: int = 248
    schedule: str = "flex"
    block_size: int | None = None
    confidence_threshold: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    sampling: str = "coupled"
    attention: str = "reference"

    def arguments(self) -> dict[str, Any]:
        """As keyword arguments."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class StreamedAnswer:
    """What was decoded, and how fast, a host round trip per step included.

    Attributes:
        output: of one row.
        seconds: in the decoder, prefill included and compilation excluded.
    """

    output: GenerateOutput
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """New tokens by seconds."""
        return len(self.output.tokens[0]) / self.seconds

    def describe(self) -> str:
        """One line: tokens, steps, tau and speed."""
        output = self.output
        return (
            f"{len(output.tokens[0])} tokens in {len(output.acceptance_lengths[0])} steps, "
            f"tau {output.tau:.2f}, {self.tokens_per_second:.0f} tokens/s while streaming, "
            f"finished by {output.finish_reasons[0]}"
        )


def encode_prompt(
    models: Models,
    prompt: str | Sequence[Message],
    *,
    raw: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """A prompt as tokens.

    Args:
        models: with the tokenizer.
        prompt: text, or messages of which the user's is the last.
        raw: take a text as it is instead of as a user's turn.
        template_kwargs: variables of the chat template.

    Raises:
        ValueError: an empty prompt, a tokenizer without a chat template, or one whose template
            refuses the messages.
    """
    if isinstance(prompt, str):
        if not is_unicode(prompt):
            raise ValueError(f"prompt={prompt!r} is not valid Unicode: was it UTF-8?")
        if not prompt:
            raise ValueError("prompt must not be empty")
        if raw:
            return list(models.tokenizer.encode(prompt))
        prompt = [Message("user", prompt)]
    if not models.tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {models.name} has no chat template: give the prompt raw (--raw)"
        )
    return chat.encode_prompt(models.tokenizer, prompt, template_kwargs)


def answer_live(
    models: Models,
    prompt: list[int],
    settings: GenerationSettings,
    show: Callable[[Piece], None],
) -> StreamedAnswer:
    """Decodes one prompt and shows each piece of text as soon as its step is done.

    Compiles first, with two updates that are thrown away. Bytes at the end that make no whole
    character are not shown.

    Args:
        models: to decode with.
        prompt: token ids.
        settings: how to decode.
        show: called with each piece.

    Raises:
        ValueError: a bad setting, named.
    """
    arguments = settings.arguments() | {"stop_token_ids": models.target.eos_token_ids}
    for _ in itertools.islice(stream(models.target, models.draft, [prompt], **arguments), 2):
        pass
    reader = PieceReader(models.tokenizer)
    start = time.perf_counter()
    elapsed = 0.0
    for output in stream(models.target, models.draft, [prompt], **arguments):
        elapsed += time.perf_counter() - start
        for piece in reader.read(output.tokens[0], output.acceptance_lengths[0]):
            show(piece)
        start = time.perf_counter()
    return StreamedAnswer(output, elapsed)


def compare_with_plain(
    models: Models, prompt: list[int], settings: GenerationSettings, *, repeats: int = 3
) -> Table:
    """Whole calls of `generate` on one prompt: plain decoding, and what `settings` ask for.

    Args:
        models: to decode with.
        prompt: token ids.
        settings: how to decode; not "ar", nor by rejection at temperature > 0.
        repeats: of both, in turn.
    """
    arguments = settings.arguments() | {"stop_token_ids": models.target.eos_token_ids}
    methods = [
        schedule_method(models.target, None, **arguments | {"schedule": "ar"}),
        schedule_method(models.target, models.draft, **arguments),
    ]
    rows = measure_decoding(methods, [prompt], domain="prompt", batch_size=1, repeats=repeats)
    equal = "yes" if rows[1].num_equal else "NO"
    return decode_table(
        rows,
        title=f"Equal to plain decoding, token for token: {equal}",
        columns=("method", "tau", "tokens/s", "speed-up"),
        note=f"Whole calls, compilation excluded. Median (lowest-highest) of {repeats} "
        "interleaved repeats.",
    )
