"""Requests in JSONL files: one object a line, whose prompt comes in one of three shapes.

    {"prompt": "How many legs has a spider?"}
    {"messages": [{"role": "user", "content": "How many legs has a spider?"}]}
    {"token_ids": [256, 72, 105, 257]}

Beside it a line may have an `id`, which its answer repeats, and settings of its own:
`max_new_tokens`, `temperature`, `top_k`, `top_p`, `min_p` and `seed`. Other fields are ignored,
and named at the end.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flexdraft_jax.data.conversations import parse_messages, shown
from flexdraft_jax.decoding.requests import Request
from flexdraft_jax.evaluation.generation import encode_prompt
from flexdraft_jax.evaluation.loading import Models

_PROMPTS = ("prompt", "messages", "token_ids")
OWN_SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed")
FIELDS = frozenset((*_PROMPTS, *OWN_SETTINGS, "id"))


@dataclasses.dataclass(frozen=True)
class LineSettings:
    """How lines are decoded that do not say otherwise.

    Attributes:
        max_new_tokens: of an answer, at most.
        temperature: 0 decodes greedily. This and the next four as for `generate`.
        top_k: 0 is all tokens.
        top_p: 1 is all tokens.
        min_p: 0 is all tokens.
        seed: lines of one seed are independent, as each is a row with the line's number.
        confidence_threshold: 0 verifies every draft.
        raw: take prompts as they are, without the chat template.
        template_kwargs: variables of the chat template.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    confidence_threshold: float = 0.01
    raw: bool = False
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_request(
    fields: Mapping[str, Any], number: int, models: Models, settings: LineSettings
) -> Request:
    """The request of a line. Whether a setting is in its range, the engine checks.

    Args:
        fields: of the line's object.
        number: of the line, and so of the row.
        models: to encode the prompt for.
        settings: for what the line does not say.

    Raises:
        ValueError: a prompt that can't be encoded, or a number that is none.
    """
    own = {name: fields.get(name, getattr(settings, name)) for name in OWN_SETTINGS}
    for name in OWN_SETTINGS:
        if name in fields:
            _check_number(name, fields[name], whole=isinstance(getattr(LineSettings, name), int))
    return Request(
        prompt=_prompt(fields, models, settings),
        confidence_threshold=settings.confidence_threshold,
        stop_token_ids=models.target.eos_token_ids,
        row_id=number,
        **own,
    )


def _prompt(fields: Mapping[str, Any], models: Models, settings: LineSettings) -> Any:
    given = [name for name in _PROMPTS if name in fields]
    if len(given) != 1:
        raise ValueError(
            f"needs exactly one of {', '.join(_PROMPTS)}; has {', '.join(given) or 'none'}"
        )
    (name,) = given
    value = fields[name]
    if name == "token_ids":
        return _token_ids(value, models.target.config.vocab_size)
    if name == "messages":
        value = parse_messages(value)
        if value[-1].role != "user":
            raise ValueError("messages end with the assistant's: the last must be the user's")
    elif not isinstance(value, str):
        raise ValueError(f"prompt={shown(value)}: must be a string")
    return encode_prompt(models, value, raw=settings.raw, template_kwargs=settings.template_kwargs)


def _token_ids(value: Any, vocab_size: int) -> list[int]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"token_ids={shown(value)}: must be a list of token ids, at least one")
    for i, token in enumerate(value):
        _check_number(f"token_ids[{i}]", token, whole=True)
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"token_ids[{i}]={shown(token)}: must be a token id between 0 and {vocab_size - 1}"
            )
    return value


def _check_number(name: str, value: Any, *, whole: bool) -> None:
    if type(value) is not int and (whole or type(value) is not float):
        right = "an integer" if whole else "a number"
        raise ValueError(f"{name}={shown(value)}: must be {right}")
