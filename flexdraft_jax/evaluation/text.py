"""Tokens to text, one token at a time, each with where it came from."""

import dataclasses
import enum
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from flexdraft_jax.evaluation.measure import decode_text

# What decoders write for bytes that are no character (yet).
_REPLACEMENT = "\ufffd"
# A character has at most four bytes, and a token at least one.
_MAX_PENDING_TOKENS = 4


class Origin(enum.Enum):
    """Who wrote a token. The target has the last word on every one of them."""

    TARGET = "target"  # the bonus of a step, or the token that the prompt led to
    DRAFT = "draft"  # drafted, verified and accepted


@dataclasses.dataclass(frozen=True)
class Piece:
    """A stretch of text.

    Attributes:
        text: whole characters only.
        origin: of its last token.
        step: the decoding step that emitted it; 0 is the prompt's own.
    """

    text: str
    origin: Origin
    step: int


class IncrementalText:
    """Decodes token by token, and gives a character out only when all its bytes are there.

    Decoding each token alone would be wrong: a character may span tokens, and some tokenizers
    write a token differently at the start of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0  # tokens that give context, from here
        self._given = 0  # tokens whose text is out

    def push(self, token: int) -> str:
        """The characters that are complete with this token; often "" or one word."""
        self._tokens.append(token)
        before = self._decode(self._start, self._given)
        text = self._decode(self._start, len(self._tokens))
        pending = len(self._tokens) - self._given
        end = len(self._tokens)
        if text.endswith(_REPLACEMENT):
            if pending < _MAX_PENDING_TOKENS:
                return ""
            # The first of them will never be a character; the others still may.
            end = self._given + 1
            text = self._decode(self._start, end)
        self._start, self._given = self._given, end
        return text[len(before) :]

    def _decode(self, start: int, end: int) -> str:
        return decode_text(self._tokenizer, self._tokens[start:end])


class PieceReader:
    """Turns what `stream` yields for one row into pieces of text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._text = IncrementalText(tokenizer)
        self._num_tokens = 0

    def read(self, tokens: Sequence[int], acceptance_lengths: Sequence[int]) -> Iterator[Piece]:
        """Pieces for the tokens that are new since the last call.

        Bytes at the end that make no whole character stay inside.

        Args:
            tokens: all that the row has emitted.
            acceptance_lengths: of all its steps.
        """
        origins = token_origins(len(tokens), acceptance_lengths)
        for token, (origin, step) in list(zip(tokens, origins, strict=True))[self._num_tokens :]:
            text = self._text.push(token)
            if text:
                yield Piece(text, origin, step)
        self._num_tokens = len(tokens)


def token_origins(num_tokens: int, acceptance_lengths: Sequence[int]) -> list[tuple[Origin, int]]:
    """Who wrote each token of a row, and in which step.

    Step i emits its accepted drafts and then the bonus, cut at a stop token or at the budget.

    >>> [origin.value for origin, step in token_origins(5, [3, 1])]
    ['target', 'draft', 'draft', 'target', 'target']

    Args:
        num_tokens: emitted by the row.
        acceptance_lengths: a + 1 of each of its steps.
    """
    origins = [(Origin.TARGET, 0)]
    for step, length in enumerate(acceptance_lengths, start=1):
        origins += [(Origin.DRAFT, step)] * (length - 1) + [(Origin.TARGET, step)]
    return origins[:num_tokens]
