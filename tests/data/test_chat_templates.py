"""Response masks of conversations under templates that have no generation markers.

The templates write what those of Llama 3.1, Qwen3 and Gemma 3 write for messages without tools.
"""

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from flexdraft_jax.data.chat import (
    EncodedTurn,
    Message,
    build_byte_tokenizer,
    encode_conversation,
    encode_prompt,
)

_LLAMA = """
{{- bos_token }}
{%- set system = messages[0].content | trim if messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if messages[0].role == 'system' else messages %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n' }}
{{- 'Today Date: ' + (date_string if date_string is defined else '26 Jul 2024') + '\n\n' }}
{{- system + '<|eot_id|>' }}
{%- for message in turns %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}
{{- message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
_QWEN = """
{%- set last = namespace(query=0) %}
{%- for message in messages if message.role == 'user' %}
{%- set last.query = messages.index(message) %}
{%- endfor %}
{%- for message in messages %}
{%- set content = message.content %}
{%- set thoughts = '' %}
{%- if message.role == 'assistant' and '</think>' in content %}
{%- set thoughts = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\n') %}
{%- endif %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.role == 'assistant' and loop.index0 > last.query and (loop.last or thoughts) %}
{{- '<think>\n' + thoughts + '\n</think>\n\n' }}
{%- endif %}
{{- content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\n\n</think>\n\n' }}
{%- endif %}
{%- endif %}
"""
_GEMMA = """
{{- bos_token }}
{%- set start = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if messages[0].role == 'system' else messages %}
{%- for message in turns %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}
{%- endif %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
{{- (start if loop.first else '') + message.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<start_of_turn>model\n' }}
{%- endif %}
"""
_LLAMA_HEAD = (
    "<bos><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n"
)


def _tokenizer(template, *special, **named):
    tokenizer = build_byte_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special])
    for name, token in named.items():
        setattr(tokenizer, name, token)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def llama() -> PreTrainedTokenizerFast:
    special = ("<bos>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return _tokenizer(_LLAMA, *special, bos_token="<bos>")


@pytest.fixture(scope="module")
def qwen() -> PreTrainedTokenizerFast:
    return _tokenizer(_QWEN, "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def gemma() -> PreTrainedTokenizerFast:
    return _tokenizer(_GEMMA, "<bos>", "<start_of_turn>", "<end_of_turn>", bos_token="<bos>")


def _messages(*contents, system=None):
    turns = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
    return ([Message("system", system)] if system else []) + turns


def _parts(tokenizer, document: EncodedTurn):
    """The document as text, with «» around what is marked as response."""
    text, marked = "", False
    # All ids at once for each stretch, so that characters of several bytes stay whole.
    stretch: list[int] = []
    for token, mark in [*zip(document.tokens, document.response_mask, strict=True), (None, False)]:
        if mark != marked or token is None:
            piece = tokenizer.decode(stretch)
            text += f"«{piece}»" if marked else piece
            stretch, marked = [], mark
        stretch.append(token)
    return text


def test_llama(llama) -> None:
    (document,) = encode_conversation(llama, _messages("Hi", " Hé\n", "More", "No", system="Be."))
    assert _parts(llama, document) == (
        f"{_LLAMA_HEAD}Be.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«Hé<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nMore<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«No<|eot_id|>»"
    )


def test_template_variables_reach_the_template(llama) -> None:
    messages = _messages("Hi", "Ho")
    (document,) = encode_conversation(llama, messages, {"date_string": "1 May 2026"})
    assert "Today Date: 1 May 2026" in _parts(llama, document)
    assert encode_prompt(llama, messages[:1], {"date_string": "1 May 2026"}) == (
        document.prompt_tokens
    )


def test_gemma(gemma) -> None:
    (document,) = encode_conversation(gemma, _messages("Hi", "Ho", "Hm", "Ha", system="Be."))
    assert _parts(gemma, document) == (
        "<bos><start_of_turn>user\nBe.\n\nHi<end_of_turn>\n"
        "<start_of_turn>model\n«Ho<end_of_turn>»\n"
        "<start_of_turn>user\nHm<end_of_turn>\n"
        "<start_of_turn>model\n«Ha<end_of_turn>»\n"
    )


def test_qwen_that_thinks_writes_its_thoughts(qwen) -> None:
    (document,) = encode_conversation(qwen, _messages("2+2?", "<think>\neasy\n</think>\n\n4"))
    assert _parts(qwen, document) == (
        "<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n«<think>\neasy\n</think>\n\n4<|im_end|>»\n"
    )


def test_qwen_without_thinking_is_prompted_with_the_empty_block(qwen) -> None:
    options = {"enable_thinking": False}
    (document,) = encode_conversation(qwen, _messages("2+2?", "4"), options)
    assert _parts(qwen, document) == (
        "<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n«4<|im_end|>»\n"
    )
    with pytest.raises(ValueError, match=r"differently before a response: '\\n</think>.*easy"):
        encode_conversation(qwen, _messages("2+2?", "<think>\neasy\n</think>\n\n4"), options)


def test_turns_that_a_template_rewrites_become_documents_of_their_own(qwen) -> None:
    """Each response stands behind what the model is served for it: earlier thoughts are gone."""
    messages = _messages("2+2?", "<think>\neasy\n</think>\n\n4", "+1?", "5", system="Be.")
    first, second = encode_conversation(qwen, messages)
    head = "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
    assert _parts(qwen, first) == (
        f"{head}<|im_start|>assistant\n«<think>\neasy\n</think>\n\n4<|im_end|>»\n"
    )
    assert _parts(qwen, second) == (
        f"{head}<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\n+1?<|im_end|>\n"
        "<|im_start|>assistant\n«<think>\n\n</think>\n\n5<|im_end|>»\n"
    )
    assert second.prompt_tokens == encode_prompt(qwen, messages[:-1])


def test_what_follows_the_last_response_is_left_out(gemma) -> None:
    (document,) = encode_conversation(gemma, _messages("Hi", "Ho", "Hm"))
    assert _parts(gemma, document).endswith("«Ho<end_of_turn>»\n")


@pytest.mark.parametrize(
    ("template", "response", "error"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}!", "Ho", "differently .*'!' alone"),
        ("{{ messages[0].content }}", "Ho", "leaves out the response: 'Ho'"),
        ("{{ messages[0].content }}", "", "empty response mask"),
        ("{{ raise_exception('not this') }}", "Ho", "refuses the messages: not this"),
        ("{{ messages[0].name.first }}", "Ho", "refuses the messages: .*no attribute 'name'"),
    ],
)
def test_wrong_templates_are_refused(template, response, error) -> None:
    tokenizer = _tokenizer(template)
    with pytest.raises(ValueError, match=error):
        encode_conversation(tokenizer, _messages("Hi", response))


def test_prompt_and_response_that_share_a_token_are_refused(gemma) -> None:
    tokenizer = _tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}", "HiHo")
    with pytest.raises(ValueError, match=r"merge with the response: \['H', 'i'\] .*\['HiHo'\]"):
        encode_conversation(tokenizer, _messages("Hi", "Ho"))


def test_a_conversation_needs_a_response(gemma) -> None:
    with pytest.raises(ValueError, match="no assistant turn"):
        encode_conversation(gemma, _messages("Hi"))
