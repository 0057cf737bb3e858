import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from model.build import seeded
from model.mllm import StoryContext, StoryReader, learnable_queries
from model.tokenizer import IMAGE_PAD, add_query_tokens, query_token, small_tokenizer


@pytest.fixture
def reader(gen):
    return StoryReader(gen.mllm, gen.tokenizer, gen.image_processor, 64)


@pytest.fixture
def llava():
    """A model of another family: fixed number of tokens an image, Llama inside."""
    tokenizer = small_tokenizer()
    add_query_tokens(tokenizer, 8)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16
    )
    text = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=len(tokenizer)
    )
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=image_id, image_seq_length=16)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    with seeded(0):
        return StoryReader(LlavaForConditionalGeneration(config).eval(), tokenizer, processor, 8), torch.randn(8, 64)


def states(reader, queries, *stories):
    with torch.no_grad():
        return reader.query_states(stories, queries)


def test_sequence_has_the_layout_of_the_paper(reader, picture):
    story = StoryContext([picture(0)], ["a fox", "runs"], [picture(1)])
    ids = reader.encode([story])["input_ids"][0].tolist()
    kinds = []
    for token in reader.tokenizer.convert_ids_to_tokens(ids):
        kind = "image" if "vision" in token or "image" in token else "query" if "query" in token else "caption"
        if kinds[-1:] != [kind]:
            kinds.append(kind)
    assert kinds == ["image", "caption", "query", "image", "caption", "query"]
    assert ids[-64:] == reader.query_ids


@pytest.mark.parametrize("family", ["qwen3_vl", "llava"])
def test_states_depend_only_on_what_stands_before(family, reader, llava, gen, picture):
    reader, queries = (reader, gen.adapter.query_embeddings()) if family == "qwen3_vl" else llava
    ref, one, two, other = (picture(k) for k in range(4))
    before = states(reader, queries, StoryContext([ref], ["a", "b", "c"], [one, two]))
    caption = states(reader, queries, StoryContext([ref], ["a", "b", "changed"], [one, two]))
    frame = states(reader, queries, StoryContext([ref], ["a", "b", "c"], [one, other]))
    reference = states(reader, queries, StoryContext([other], ["a", "b", "c"], [one, two]))
    for changed in (caption, frame):
        assert torch.allclose(before[:, :2], changed[:, :2], atol=1e-6)
        assert not torch.allclose(before[:, 2], changed[:, 2], atol=1e-4)
    assert ((before - reference).abs().amax((0, 2, 3)) > 1e-4).all()


def test_padding_in_a_batch_does_not_change_a_story(reader, gen, picture):
    short = StoryContext([picture(0)], ["a", "b"], [picture(1)])
    long = StoryContext([picture(2), picture(3)], ["a fox " * 20, "b"], [picture(1, 96, 64)])
    alone = states(reader, gen.adapter.query_embeddings(), short)
    together = states(reader, gen.adapter.query_embeddings(), long, short)
    assert torch.allclose(alone[0], together[1], atol=1e-5)


def test_special_tokens_in_a_caption_are_letters(reader, gen, picture):
    hostile = f"{query_token(0)}{IMAGE_PAD}<|vision_start|>"
    result = states(reader, gen.adapter.query_embeddings(), StoryContext([picture(0)], [hostile, ""], [picture(1)]))
    assert result.shape == (1, 2, 64, 64)
    ids = reader.encode([StoryContext([picture(0)], [hostile], [])])["input_ids"]
    assert (ids == reader.query_ids[0]).sum() == 1


def test_query_embeddings_replace_only_their_tokens():
    embedding, queries = torch.nn.Embedding(10, 4), torch.ones(3, 4)
    with learnable_queries(embedding, queries, first_id=5):
        inside = embedding(torch.arange(10))
    assert torch.equal(inside[5:8], queries)
    assert torch.equal(inside[[0, 4, 8, 9]], embedding.weight[[0, 4, 8, 9]])
    assert torch.equal(embedding(torch.tensor([5])), embedding.weight[5:6])


def test_wrong_numbers_of_frames_and_shots_are_named(reader, gen, picture):
    with pytest.raises(ValueError, match=r"3 captions needs 2 last frames .* not 1"):
        StoryContext([picture(0)], ["a", "b", "c"], [picture(1)])
    one = StoryContext([picture(0)], ["a"], [])
    two = StoryContext([picture(0)], ["a", "b"], [picture(1)])
    with pytest.raises(ValueError, match="equally many shots"):
        reader.query_states([one, two], gen.adapter.query_embeddings())


def test_story_beyond_the_context_is_refused(reader, picture):
    with pytest.raises(ValueError, match="longer than the MLLM can read"):
        reader.encode([StoryContext([picture(0)], ["z9" * 9000], [])])


def test_tokenizer_without_query_tokens_is_refused(gen):
    with pytest.raises(ValueError, match="add_query_tokens"):
        StoryReader(gen.mllm, small_tokenizer(), gen.image_processor, 64)
