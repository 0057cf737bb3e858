import pytest

from model.tokenizer import IMAGE_PAD, add_query_tokens, query_token, small_tokenizer


@pytest.mark.parametrize("text", ["A fox runs.", "狐が走る", "naïve – “quotes” 🦊", ""])
def test_any_text_survives_encoding(text):
    tokenizer = small_tokenizer()
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_training_gives_the_same_tokenizer_every_time():
    assert small_tokenizer().get_vocab() == small_tokenizer().get_vocab()


def test_query_tokens_are_consecutive_and_added_once():
    tokenizer = small_tokenizer()
    add_query_tokens(tokenizer, 64)
    size = len(tokenizer)
    add_query_tokens(tokenizer, 64)
    ids = tokenizer.convert_tokens_to_ids([query_token(i) for i in range(64)])
    assert len(tokenizer) == size
    assert ids == list(range(ids[0], ids[0] + 64))


def test_text_encoder_tokenizer_ends_texts():
    tokenizer = small_tokenizer(append_eos=True)
    assert tokenizer("a fox")["input_ids"][-1] == tokenizer.eos_token_id
    assert IMAGE_PAD in tokenizer.get_vocab()
