import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from flexdraft_jax.data.chat import EncodedTurn, build_byte_tokenizer, encode_turn

_TOKENIZER = build_byte_tokenizer()


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    _TOKENIZER.save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


def test_ids_are_bytes_and_four_special_tokens(reloaded):
    for tokenizer in (_TOKENIZER, reloaded):
        assert len(tokenizer) == 260
        assert tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"]) == [256, 257]
        assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (258, 259)


@given(st.text().filter(lambda text: "<|" not in text))
@settings(max_examples=200, deadline=None)
def test_round_trip_of_any_text(text):
    ids = _TOKENIZER.encode(text)
    assert ids == list(text.encode())
    assert _TOKENIZER.decode(ids, skip_special_tokens=True) == text


def test_round_trip_after_loading(reloaded):
    text = " it 's , a  test .\n\té 水 🙂\x00"
    assert reloaded.encode(text) == list(text.encode())
    assert reloaded.decode(reloaded.encode(text), skip_special_tokens=True) == text
    assert reloaded.decode([256, *text.encode(), 258], skip_special_tokens=True) == text


def test_turn_has_its_response_marked(reloaded):
    for tokenizer in (_TOKENIZER, reloaded):
        turn = encode_turn(tokenizer, "hi", "yo")
        assert turn.tokens == [256, *b"hi", 257, *b"yo", 258]
        assert turn.response_mask == [False] * 4 + [True] * 3
        assert turn.prompt_tokens == [256, *b"hi", 257]
        assert encode_turn(tokenizer, "hi", None) == EncodedTurn(turn.prompt_tokens, [False] * 4)


def test_mask_agrees_with_the_templates_generation_markers(reloaded):
    messages = [{"role": "user", "content": "é"}, {"role": "assistant", "content": "ok\n"}]
    marked = reloaded.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    turn = encode_turn(reloaded, "é", "ok\n")
    assert turn.tokens == marked["input_ids"]
    assert turn.response_mask == [bool(mark) for mark in marked["assistant_masks"]]


def test_bad_turns_are_refused():
    with pytest.raises(ValueError, match="prompt"):
        encode_turn(_TOKENIZER, "", "yo")
    with pytest.raises(ValueError, match="response_mask"):
        EncodedTurn([1, 2], [True])
