import sys

import pytest
import torch
from families import NAMES, QUERIES, parts, write_nvila

from model import AnimeShooterGen, AnimeShooterPipeline, QueryAdapter
from model.images import as_references
from model.memory import ConditionPolicy
from model.mllm import StoryContext, StoryReader, both_captions, learnable_queries, shot_context, story_contexts
from model.tokenizer import IMAGE_PAD, query_token, small_tokenizer


@pytest.fixture
def reader(gen):
    return StoryReader(gen.mllm, gen.tokenizer, gen.image_processor, 64)


def story(references, captions, frames=()):
    """A story remembered by the last frame of each shot, as the paper has it."""
    return StoryContext(as_references(references), captions, [[frame] for frame in frames])


def states(reader, queries, *stories):
    with torch.no_grad():
        return reader.query_states(stories, queries)


def test_sequence_has_the_layout_of_the_paper(reader, picture):
    ids = reader.encode([story(picture(0), ["a fox", "runs"], [picture(1)])])["input_ids"][0].tolist()
    kinds = []
    for token in reader.tokenizer.convert_ids_to_tokens(ids):
        kind = "image" if "vision" in token or "image" in token else "query" if "query" in token else "caption"
        if kinds[-1:] != [kind]:
            kinds.append(kind)
    assert kinds == ["image", "caption", "query", "image", "caption", "query"]
    assert ids[-64:] == reader.query_ids


@pytest.mark.parametrize("family", NAMES)
def test_every_family_reads_the_layout_and_its_queries_learn(family, picture, tmp_path):
    mllm, tokenizer, processor = parts(family, tmp_path / "nvila")
    reader, queries = StoryReader(mllm, tokenizer, processor, QUERIES), torch.randn(QUERIES, 64, requires_grad=True)
    stories = [
        story([picture(1), picture(2, 96, 64)], ["a", "b"], [picture(3)]),
        story(picture(4), ["a fox " * 9, ""], [picture(5)]),
    ]
    found = reader.query_states(stories, queries)
    assert found.shape == (2, 2, QUERIES, 64)
    found.square().mean().backward()
    assert (queries.grad.abs().sum(1) > 0).all()
    with torch.no_grad():
        alone = reader.query_states(stories[1:], queries)
    assert torch.allclose(alone[0], found[1], atol=1e-4)  # padding beside a longer story changes nothing


def test_several_references_are_introduced_by_name(reader, picture):
    def text(references):
        ids = reader.encode([story(references, ["x"])])["input_ids"][0].tolist()
        pictures = {reader.image_start, reader.image_id, reader.image_end, *reader.query_ids}
        return reader.tokenizer.decode([token for token in ids if token not in pictures])

    assert text({"Fox": picture(0), "Owl": picture(1)}) == "Fox: Owl: x"
    assert text([("Fox", picture(0)), picture(1)]) == "Fox: x"
    assert text(("Fox", picture(0))) == "x"  # one alone is the paper's layout
    hostile = reader.encode([story({query_token(0): picture(0), IMAGE_PAD: picture(1)}, ["x"])])["input_ids"][0]
    assert (hostile == reader.query_ids[0]).sum() == 1


def test_whose_reference_is_whose_matters(reader, gen, picture):
    queries = gen.adapter.query_embeddings()
    one, other = (
        states(reader, queries, story(list(zip(names, (picture(0), picture(1)))), ["Fox runs"]))
        for names in (("Fox", "Owl"), ("Owl", "Fox"))
    )
    assert (one - other).abs().max() > 1e-4


def test_frames_without_captions_stand_alone(reader, picture):
    policy = ConditionPolicy("first_last", memory_captions=False)
    memory = [[picture(1), picture(2)], [picture(3), picture(4)]]
    sequence = shot_context(policy, as_references(picture(0)), ["a", "b", "c"], memory)
    assert [caption for caption in sequence.captions if caption is not None] == ["c"]
    ids = reader.encode([sequence])["input_ids"][0]
    assert (ids == reader.query_ids[0]).sum() == 1
    assert (ids == reader.image_start).sum() == 5


def test_both_captions_are_told_apart():
    text = both_captions("Red meets Blue.", "Two squares.")
    assert text.index("Narrative: Red meets Blue.") < text.index("Descriptive: Two squares.")
    assert both_captions("a", "b") != both_captions("a b", "")


@pytest.mark.parametrize("projector", ["mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix"])
def test_nvila_joins_patches_as_its_projector_does(projector, tmp_path, picture):
    from model.nvila import is_nvila, load_nvila
    from model.pretrained import laid_out_mllm

    llm, tower, weights = write_nvila(tmp_path, projector)
    assert is_nvila(str(tmp_path))
    model, _, processor = load_nvila(str(tmp_path))
    pixels = processor(images=[picture(0)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        mine = model.get_image_features(pixels).pooler_output[0]
        patches = tower(pixels, output_hidden_states=True).hidden_states[-2][0].reshape(5, 5, -1).repeat(1, 1, 3)
        joined, side = (3, 2) if "3x3" in projector else (2, 3)
        padded = torch.zeros(side * joined, side * joined, patches.shape[-1])
        padded[:5, :5] = patches
        cells = [
            torch.cat([padded[row * joined + y, column * joined + x] for y in range(joined) for x in range(joined)])
            for row in range(side)
            for column in range(side)
        ]
        value, number = torch.stack(cells), 1
        while f"layers.{number + 1}.weight" in weights:
            scale, shift = weights[f"layers.{number}.weight"], weights[f"layers.{number}.bias"]
            value = torch.nn.functional.layer_norm(value, scale.shape, scale, shift)
            value = value @ weights[f"layers.{number + 1}.weight"].T + weights[f"layers.{number + 1}.bias"]
            value, number = torch.nn.functional.gelu(value), number + 3
        expected = value @ weights[f"layers.{number}.weight"].T + weights[f"layers.{number}.bias"]
    assert torch.allclose(mine, expected, atol=1e-5)
    assert model.config.image_seq_length == len(expected) == side**2
    with torch.device("meta"):
        bare = laid_out_mllm(str(tmp_path))
    assert {name: one.shape for name, one in bare.named_parameters()} == {
        name: one.shape for name, one in model.named_parameters()
    }
    assert torch.equal(model.get_input_embeddings().weight[: llm.config.vocab_size], llm.get_input_embeddings().weight)


def test_nvila_of_another_kind_or_without_weights_is_refused(tmp_path):
    from model.nvila import is_nvila, load_nvila

    write_nvila(tmp_path / "a", "mlp2x_gelu")
    with pytest.raises(ValueError, match=r"projector mlp2x_gelu is not built here"):
        load_nvila(str(tmp_path / "a"))
    write_nvila(tmp_path / "b")
    (tmp_path / "b" / "mm_projector" / "model.safetensors").rename(tmp_path / "b" / "mm_projector" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"mm_projector: no weights as safetensors"):
        load_nvila(str(tmp_path / "b"))
    write_nvila(tmp_path / "c", scales="64")
    (tmp_path / "c" / "mm_projector" / "config.json").write_text('{"mm_projector_type": "mlp_downsample_3x3_fix"}')
    with pytest.raises(ValueError, match=r"mm_projector: weights of another projector"):
        load_nvila(str(tmp_path / "c"))
    assert not is_nvila(str(tmp_path / "none"))


def test_a_checkpoint_with_nvila_in_it_loads_by_itself(gen, tmp_path, monkeypatch):
    gen.mllm, gen.tokenizer, gen.image_processor = parts("nvila", tmp_path / "hub")
    gen.save_pretrained(tmp_path / "ck")
    monkeypatch.delitem(sys.modules, "model.nvila")  # as in a process that has not heard of it
    pipeline = AnimeShooterPipeline.from_pretrained(tmp_path / "ck", text_encoder=None)
    assert type(pipeline.mllm).__name__ == "NvilaForConditionalGeneration"
    for name, value in gen.mllm.state_dict().items():
        assert torch.equal(pipeline.mllm.state_dict()[name], value)


@pytest.mark.parametrize("family", NAMES)
def test_every_family_survives_checkpoint_after_checkpoint(gen, family, picture, tmp_path, shake_lora):
    gen.mllm, gen.tokenizer, gen.image_processor = parts(family, tmp_path / "hub")
    gen.adapter = QueryAdapter(QUERIES, 64, 24, 64, hidden_size=64, num_layers=2, num_heads=4, intermediate_size=128).eval()
    gen.set_trainable("single_shot")
    shake_lora(gen.mllm)
    condition = gen.condition([picture(0)], [["a", "b"]], [[picture(1)]])
    for name in ("once", "twice"):  # loaded with a LoRA, a model is saved otherwise than made
        gen.save_pretrained(tmp_path / name)
        gen = AnimeShooterGen.from_pretrained(tmp_path / name)
        with torch.no_grad():
            assert torch.equal(gen.condition([picture(0)], [["a", "b"]], [[picture(1)]]), condition)


def test_nvila_comes_back_from_a_folder_of_its_own(tmp_path, picture):
    from transformers import AutoModelForImageTextToText

    model, tokenizer, processor = parts("nvila", tmp_path / "hub")
    model.save_pretrained(tmp_path / "mine")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "mine").eval()
    queries = torch.randn(QUERIES, 64)
    before, after = (
        states(StoryReader(one, tokenizer, processor, QUERIES), queries, story(picture(0), ["a"])) for one in (model, again)
    )
    assert torch.equal(before, after)


def test_padding_in_a_batch_does_not_change_a_story(reader, gen, picture):
    short = story(picture(0), ["a", "b"], [picture(1)])
    long = story([picture(2), picture(3)], ["a fox " * 20, "b"], [picture(1, 96, 64)])
    alone = states(reader, gen.adapter.query_embeddings(), short)
    together = states(reader, gen.adapter.query_embeddings(), long, short)
    assert torch.allclose(alone[0], together[1], atol=1e-5)


def test_special_tokens_in_a_caption_are_letters(reader, gen, picture):
    hostile = f"{query_token(0)}{IMAGE_PAD}<|vision_start|>"
    result = states(reader, gen.adapter.query_embeddings(), story(picture(0), [hostile, ""], [picture(1)]))
    assert result.shape == (1, 2, 64, 64)
    ids = reader.encode([story(picture(0), [hostile])])["input_ids"]
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
        story(picture(0), ["a", "b", "c"], [picture(1)])
    with pytest.raises(ValueError, match="at least one caption"):
        story(picture(0), ["a", None], [picture(1)])
    with pytest.raises(ValueError, match=r"2 captions needs 1 last frames .* not 0"):
        story_contexts(ConditionPolicy(shots_back=0), as_references(None), ["a", "b"], [])
    one = story(picture(0), ["a"])
    two = story(picture(0), ["a", "b"], [picture(1)])
    with pytest.raises(ValueError, match="equally many shots"):
        reader.query_states([one, two], gen.adapter.query_embeddings())


def test_story_beyond_the_context_is_refused(reader, picture):
    with pytest.raises(ValueError, match="longer than the MLLM can read"):
        reader.encode([story(picture(0), ["z9" * 9000])])


def test_tokenizer_without_query_tokens_is_refused(gen):
    with pytest.raises(ValueError, match="add_query_tokens"):
        StoryReader(gen.mllm, small_tokenizer(), gen.image_processor, 64)
