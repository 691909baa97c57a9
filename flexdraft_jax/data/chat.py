"""Chat turns as tokens: the byte-level tokenizer of the embedded default, and turns with a mask.

A turn reads `<|user|>{prompt}<|assistant|>{response}<|end|>`. In the byte-level tokenizer a token
id below 256 is the byte itself, and four special tokens follow.
"""

from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class EncodedTurn:
    """One document: a prompt, and its response unless that is still to be written.

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
        """Tokens before the response (all of them if there is no response)."""
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


def encode_turn(
    tokenizer: PreTrainedTokenizerBase, prompt: str, response: str | None
) -> EncodedTurn:
    """Encodes one user turn, with the assistant's response or ready for the model to write it.

    The mask comes from the prompt's length and not from the template's generation markers, which
    most published templates lack.

    Args:
      tokenizer: any tokenizer with a chat template.
      prompt: what the user says.
      response: what the assistant says; None ends the turn where the response would begin.

    Raises:
      ValueError: if `prompt` is empty, or if the template writes the same prompt differently with
        and without a response.
    """
    if not prompt:
        raise ValueError("prompt must not be empty")
    messages = [{"role": "user", "content": prompt}]
    head = _apply_template(tokenizer, messages, add_generation_prompt=True)
    if response is None:
        return EncodedTurn(head, [False] * len(head))
    messages.append({"role": "assistant", "content": response})
    tokens = _apply_template(tokenizer, messages, add_generation_prompt=False)
    if tokens[: len(head)] != head:
        raise ValueError(
            "the tokenizer's chat template must begin a full turn with its generation prompt; "
            f"it wrote {head!r} alone and {tokens[: len(head)]!r} before a response"
        )
    return EncodedTurn(tokens, [False] * len(head) + [True] * (len(tokens) - len(head)))


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], add_generation_prompt: bool
) -> list[int]:
    encoding: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=True
    )
    return list(encoding["input_ids"])


def _byte_symbols() -> list[str]:
    """Returns the printable character that byte-level BPE writes for each byte, in byte order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
