"""Conversations as tokens with a response mask, and the byte-level tokenizer of the default.

The mask comes from rendering prefixes and not from the template's generation markers, which most
published templates lack: what the template writes for the messages before a response, generation
prompt included, is the prompt that the model is served, and the rest is the response.

With the byte-level tokenizer a turn reads `<|user|>{prompt}<|assistant|>{response}<|end|>`. A token
id below 256 is the byte itself, and four special tokens follow.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

USER_TOKEN = "<|user|>"
ASSISTANT_TOKEN = "<|assistant|>"
END_TOKEN = "<|end|>"
PAD_TOKEN = "<|pad|>"
_SPECIAL_TOKENS = (USER_TOKEN, ASSISTANT_TOKEN, END_TOKEN, PAD_TOKEN)  # ids 256, 257, 258, 259

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ raise_exception('roles are user and assistant, got ' + message['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """What one side says.

    Attributes:
      role: "system", "user" or "assistant".
      content: text.
    """

    role: Role
    content: str


@dataclass(frozen=True)
class EncodedTurn:
    """One document: a prompt and its response, further turns, or a prompt to be answered.

    Attributes:
      tokens: [T] token ids.
      response_mask: [T], True at tokens that the assistant writes, its end token included.
    """

    tokens: list[int]
    response_mask: list[bool]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.response_mask):
            raise ValueError(
                f"response_mask must be as long as tokens, got {len(self.response_mask)} "
                f"for {len(self.tokens)} tokens"
            )

    @property
    def prompt_tokens(self) -> list[int]:
        """Tokens before the first response (all of them if there is no response)."""
        end = self.response_mask.index(True) if any(self.response_mask) else len(self.tokens)
        return self.tokens[:end]


def build_byte_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose ids 0..255 are bytes and 256..259 the special tokens.

    Decoding what was encoded gives the text back exactly, whatever it holds; only text that spells
    a special token, such as "<|end|>", becomes that token.
    """
    vocabulary = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in _SPECIAL_TOKENS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN,
        additional_special_tokens=[USER_TOKEN, ASSISTANT_TOKEN],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[EncodedTurn]:
    """Encodes a conversation of any number of turns, with every response marked.

    Every response stands behind exactly the tokens that a server would send for it. Most templates
    only append, and the conversation becomes one document. Where a template rewrites what came
    before (Qwen3 takes the thoughts out of earlier turns), a new document begins, in which only
    the later responses are marked. Messages after the last response are left out.

    A response ends with the token that ends the turn; whitespace that the template writes behind
    it belongs to nobody.

    Args:
      tokenizer: any tokenizer with a chat template.
      messages: system message (optional), then user and assistant in turn.
      template_kwargs: variables of the template, such as {"enable_thinking": False} for Qwen3 or
        {"date_string": "26 Jul 2024"} for Llama 3.2, whose template writes today's date.

    Raises:
      ValueError: there is no assistant message, the template refuses the messages, leaves out a
        response, or writes the prompt differently with and without the response. The message is
        a kind of error, a colon, and what was found.
    """
    documents: list[EncodedTurn] = []
    tokens: list[int] = []
    mask: list[bool] = []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        prompt_length, end, rendered = _encode_reply(
            tokenizer, messages[: index + 1], template_kwargs
        )
        if rendered[:prompt_length][: len(tokens)] != tokens:
            documents.append(EncodedTurn(tokens, mask))
            mask = []
        mask += [False] * (prompt_length - len(mask))
        mask += [True] * (end - prompt_length) + [False] * (len(rendered) - end)
        tokens = rendered
    if not tokens:
        raise ValueError("no assistant turn: there is no response to learn from")
    return [*documents, EncodedTurn(tokens, mask)]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Encodes messages up to where the assistant's next response begins.

    Raises:
      ValueError: the template refuses the messages, or fails on them.
    """
    return _tokens(tokenizer, _render(tokenizer, messages, True, template_kwargs))


def encode_turn(
    tokenizer: PreTrainedTokenizerBase, prompt: str, response: str | None
) -> EncodedTurn:
    """Encodes one user turn, with the assistant's response or ready for the model to write it.

    Args:
      tokenizer: any tokenizer with a chat template.
      prompt: what the user says.
      response: what the assistant says; None ends the turn where the response would begin.

    Raises:
      ValueError: if `prompt` is empty, or as :func:`encode_conversation`.
    """
    if not prompt:
        raise ValueError("prompt must not be empty")
    user = Message("user", prompt)
    if response is None:
        head = encode_prompt(tokenizer, [user])
        return EncodedTurn(head, [False] * len(head))
    (turn,) = encode_conversation(tokenizer, [user, Message("assistant", response)])
    return turn


def parse_template_kwargs(text: str) -> dict[str, Any]:
    """Reads variables of a chat template from a JSON object.

    Raises:
      ValueError: if `text` is none.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(
            f'template_kwargs={text!r}: must be a JSON object such as {{"enable_thinking": false}}'
        )
    return values


def _encode_reply(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    template_kwargs: Mapping[str, Any] | None,
) -> tuple[int, int, list[int]]:
    """Tokens of messages that end with a response; where that begins, and where it ends."""
    head = _render(tokenizer, messages[:-1], True, template_kwargs)
    full = _render(tokenizer, messages, False, template_kwargs)
    if not full.startswith(head):
        raise ValueError(
            "the chat template writes the prompt differently before a response: "
            + _difference(head, full)
        )
    last_line = messages[-1].content.strip().rpartition("\n")[-1].strip()
    if last_line not in full[len(head) :]:
        raise ValueError(
            f"the chat template leaves out the response: {last_line[:80]!r} is not in what it "
            f"writes after the prompt, {full[len(head) :][:80]!r}"
        )
    head_tokens, tokens = _tokens(tokenizer, head), _tokens(tokenizer, full)
    if tokens[: len(head_tokens)] != head_tokens:
        raise ValueError(
            "the prompt's last tokens merge with the response: "
            + _difference(
                tokenizer.convert_ids_to_tokens(head_tokens),
                tokenizer.convert_ids_to_tokens(tokens),
            )
        )
    end = _response_end(tokenizer, tokens, len(head_tokens))
    if end == len(head_tokens):
        raise ValueError(
            f"empty response mask: the template writes nothing after the prompt, {head[-80:]!r}"
        )
    return len(head_tokens), end, tokens


def _response_end(tokenizer: PreTrainedTokenizerBase, tokens: list[int], start: int) -> int:
    """Where a response ends: behind its end token, before whitespace that follows it."""
    end = len(tokens)
    while end > start and not str(tokenizer.decode([tokens[end - 1]])).strip():
        end -= 1
    ends_turn = end > start and tokens[end - 1] in tokenizer.added_tokens_decoder
    return end if ends_turn else len(tokens)


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    template_kwargs: Mapping[str, Any] | None,
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            [vars(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **(template_kwargs or {}),
        )
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the messages: {error}") from error
    except Exception as error:  # Of what it computes with them, or with its variables.
        raise ValueError(f"the chat template fails on the messages: {error!r}") from error
    assert isinstance(text, str)  # one conversation in, one text out
    return text


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # The template writes special tokens itself.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _difference(head: Sequence[str], full: Sequence[str]) -> str:
    """The parts of both from where they part ways, for an error."""
    pairs = zip(head, full, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(head), len(full)))
    return f"{head[same : same + 80]!r} alone, {full[same : same + 80]!r} with the response"


def _byte_symbols() -> list[str]:
    """Returns the printable character that byte-level BPE writes for each byte, in byte order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
