"""The back-ends through tiny random configurations of the real classes, saved and loaded as any checkpoint is."""

import json

import numpy as np
import pytest
import torch

from animeshooter_dataset import Character, DataError
from curation.script import Sample
from curation.segment import ClassicalSegmenter
from curation.segment_models import (
    Candidates,
    Square,
    TextSegmenter,
    _grounded,
    _sam3,
    assign,
    check_segmenter,
    phrases,
    segmenter_of,
    squared,
)

CAST = [
    Character(id="fox", appearance="a young orange fox with a white muzzle, a bushy tail and red boots"),
    Character(id="frog", appearance="a round green frog with big amber eyes"),
]
WORDS = "a young orange fox with white muzzle round green frog big amber eyes bushy tail red boots".split()


@pytest.fixture(scope="module", autouse=True)
def quiet():
    torch.set_num_threads(1)
    yield
    _sam3.cache_clear()
    _grounded.cache_clear()


def bert_tokenizer():
    """A vocabulary with its marks where GroundingDINO's code expects BERT's: 101, 102, 1012 and 1029."""
    from transformers import BertTokenizer

    known = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    known |= {2000 + i: word for i, word in enumerate(dict.fromkeys(WORDS))}
    return BertTokenizer(vocab={known.get(i, f"[unused{i}]"): i for i in range(2050)})


def clip_tokenizer(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    raw = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    marks = ["<|startoftext|>", "<|endoftext|>"]
    raw.train_from_iterator([" ".join(WORDS)] * 4, trainers.BpeTrainer(vocab_size=400, special_tokens=marks))
    raw.model.save(str(folder))
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def sam3(tmp_path_factory):
    from transformers import CLIPTextConfig, Sam3Config, Sam3Model, Sam3VisionConfig, Sam3ViTConfig

    folder = tmp_path_factory.mktemp("sam3")
    tokenizer = clip_tokenizer(folder)
    vision = Sam3VisionConfig(
        backbone_config=Sam3ViTConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=112,
            patch_size=14, window_size=4, global_attn_indexes=[1], pretrain_image_size=56,
        ),
        fpn_hidden_size=32, backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    )  # fmt: skip
    small = {"hidden_size": 32, "num_attention_heads": 2}
    layered = small | {"num_layers": 1, "intermediate_size": 32}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=16, max_position_embeddings=32, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = Sam3Config(
        vision_config=vision, text_config=text, geometry_encoder_config=layered, detr_encoder_config=layered,
        detr_decoder_config=layered | {"num_queries": 6}, mask_decoder_config=small,
    )  # fmt: skip
    torch.manual_seed(0)
    Sam3Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.6] * 3}))
    return folder


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    from transformers import (
        BertConfig,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    backbone = SwinConfig(
        image_size=64, patch_size=4, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=BertConfig(
            vocab_size=2050, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        ),
        d_model=32, encoder_layers=1, encoder_ffn_dim=32, encoder_attention_heads=2, decoder_layers=2, decoder_ffn_dim=32,
        decoder_attention_heads=2, num_queries=9, encoder_n_points=2, decoder_n_points=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("gdino")
    torch.manual_seed(0)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    pictures = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(pictures, bert_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sam2(tmp_path_factory):
    from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig

    vision = Sam2VisionConfig(
        backbone_config=Sam2HieraDetConfig(
            hidden_size=8, num_attention_heads=1, image_size=[128, 128], blocks_per_stage=[1, 1, 2, 1],
            embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 1, 2, 2],
            window_size_per_stage=[4, 4, 4, 4], global_attention_blocks=[3],
            window_positional_embedding_background_size=[2, 2],
        ),
        backbone_channel_list=[64, 32, 16, 8], backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]], fpn_hidden_size=32,
    )  # fmt: skip
    config = Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": 128, "patch_size": 16},
        mask_decoder_config={
            "hidden_size": 32, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 32,
        },
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("sam2")
    torch.manual_seed(0)
    Sam2Model(config).save_pretrained(folder)
    return folder


def shot(count=3, height=48, width=80):
    noise = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Sample(12 * k, image) for k, image in enumerate(noise)]


def check(segmenter, frames):
    """Every character gets masks of the frames' size or None; no figure goes to two; asking again answers the same."""
    found = {each.id: segmenter.segment(frames, each, CAST) for each in CAST}
    for masks in found.values():
        assert len(masks) == len(frames)
        for mask in masks:
            assert mask is None or (mask.shape == (48, 80) and mask.dtype == bool and mask.any())
    again = segmenter.segment(frames, CAST[0], CAST)
    for a, b in zip(found["fox"], again):
        assert (a is None) == (b is None)
        assert a is None or (a == b).all()
    return found


def test_sam3_marks_frames_from_words(sam3):
    segmenter = segmenter_of(f"sam3:{sam3}", device="cpu")
    assert isinstance(segmenter, TextSegmenter)
    model = segmenter.model
    assert model.square == Square(112, 112, (0.4,) * 3, (0.6,) * 3)
    model.threshold, model.batch = 0.0, 2
    found = check(segmenter, shot())
    assert any(mask is not None for masks in found.values() for mask in masks)
    model.threshold = 1.1
    assert check(TextSegmenter(model), shot())["fox"] == [None] * 3


def test_sam3_masks_are_those_of_one_frame_at_a_time(sam3):
    segmenter = segmenter_of(f"sam3:{sam3}", device="cpu")
    segmenter.model.threshold, segmenter.model.batch = 0.0, 3
    together = TextSegmenter(segmenter.model).segment(shot(), CAST[1], CAST)
    alone = [TextSegmenter(segmenter.model).segment([frame], CAST[1], CAST)[0] for frame in shot()]
    for a, b in zip(together, alone):
        assert (a is None) == (b is None)
        assert a is None or (a == b).mean() > 0.999


def test_sam3_reads_no_more_words_than_it_was_trained_with(sam3):
    model = segmenter_of(f"sam3:{sam3}", device="cpu").model
    model.threshold = 0.0
    assert len(model.masks([shot()[0].image], ["young orange fox " * 40])) == 1


def test_grounding_dino_finds_boxes_that_sam2_fills(detector, sam2):
    segmenter = segmenter_of(f"gdino+sam2:{detector},{sam2}", device="cpu")
    model = segmenter.model
    model.threshold, model.batch = 0.0, 2
    boxes = model._boxes([frame.image for frame in shot()], ["a young orange fox", "a round green frog"])
    assert [len(row) for row in boxes] == [2, 2, 2]
    for row in boxes:
        for x0, y0, x1, y1 in (box for box in row if box is not None):
            assert 0 <= x0 <= x1 <= 80
            assert 0 <= y0 <= y1 <= 48
    check(segmenter, shot())
    model.threshold = 1.1
    assert check(TextSegmenter(model), shot())["frog"] == [None] * 3


def test_boxes_and_masks_follow_the_frames_size(detector, sam2):
    model = segmenter_of(f"gdino+sam2:{detector},{sam2}", device="cpu").model
    seen = {}
    answer = model.segmenter.forward

    def spy(*values, **named):
        seen.update(named)
        return answer(*values, **named)

    model.segmenter.forward = spy
    try:
        features = model.segmenter.get_image_embeddings(squared([shot()[0].image], model.square))
        model._fill(features, (48, 80), [None, np.array([40.0, 24.0, 80.0, 48.0])])
    finally:
        del model.segmenter.forward
    torch.testing.assert_close(seen["input_boxes"], torch.tensor([[[64.0, 64.0, 128.0, 128.0]]]))


def test_every_phrase_has_its_own_tokens(detector, sam2):
    model = segmenter_of(f"gdino+sam2:{detector},{sam2}", device="cpu").model
    tokens = model.processor.tokenizer(["a young orange fox. a round green frog."])["input_ids"][0]
    words = [[model.processor.tokenizer.convert_ids_to_tokens(tokens[k]) for k in span] for span in model._spans(tokens, 3)]
    assert words == [["a", "young", "orange", "fox"], ["a", "round", "green", "frog"], []]


def test_a_check_reads_no_weights(sam3, sam2, detector):
    _sam3.cache_clear()
    _grounded.cache_clear()
    for spec in ("classical", f"sam3:{sam3}", f"gdino+sam2:{detector},{sam2}"):
        check_segmenter(spec)
    assert _sam3.cache_info().misses == _grounded.cache_info().misses == 0
    with pytest.raises(DataError, match="a sam2 model, where one of sam3"):
        check_segmenter(f"sam3:{sam2}")


def test_models_are_loaded_once_a_process(sam3):
    assert segmenter_of(f"sam3:{sam3}", device="cpu").model is segmenter_of(f"sam3:{sam3}", device="cpu").model
    assert isinstance(segmenter_of("classical"), ClassicalSegmenter)
    assert segmenter_of("classical") is not segmenter_of("classical"), "it holds the colours of one story"


@pytest.mark.parametrize("spec", ["", "sam", "sam3:", "classical:x", "gdino+sam2:only-one", "gdino+sam2:,b", "openai:x#y"])
def test_a_wrong_spec_names_the_choices(spec):
    for tried in (segmenter_of, check_segmenter):
        with pytest.raises(DataError, match="there are classical, sam3"):
            tried(spec)


def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path, sam2, sam3):
    (tmp_path / "config.json").write_text("{}")
    for spec in (f"sam3:{tmp_path}", f"gdino+sam2:{sam2},{sam2}"):
        for tried in (lambda spec: segmenter_of(spec, device="cpu"), check_segmenter):
            with pytest.raises(DataError, match=r"cannot be loaded|one of grounding-dino") as problem:
                tried(spec)
            assert "\n" not in str(problem.value)
    with pytest.raises(DataError, match="float32, bfloat16"):
        segmenter_of(f"sam3:{sam3}", dtype="int8")
    with pytest.raises(DataError, match="device 'nowhere'"):
        segmenter_of(f"sam3:{sam3}", device="nowhere")


def test_pickled_weights_are_refused(tmp_path, sam2, detector):
    import shutil

    from safetensors.torch import load_file

    folder = tmp_path / "pickled"
    shutil.copytree(sam2, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="cannot be loaded"):
        segmenter_of(f"gdino+sam2:{detector},{folder}", device="cpu")


def test_squared_pictures_are_stretched_and_normalised():
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 20:] = (255, 128, 0)
    pixels = squared([image], Square(10, 10, (0.5,) * 3, (0.5, 0.5, 0.25)))
    assert pixels.shape == (1, 3, 10, 10)
    torch.testing.assert_close(pixels[0, :, 5, 0], torch.tensor([-1.0, -1.0, -2.0]))
    torch.testing.assert_close(pixels[0, :, 5, 9], torch.tensor([1.0, 128 / 127.5 - 1, -2.0]))


def test_a_figure_is_given_to_the_character_it_fits_best():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [30, 0, 40, 10]], float)
    scores = np.array([[0.9, 0.8, 0.2], [0.85, 0.7, 0.4]])
    assert assign(Candidates(scores, boxes), 0.3) == [0, 2]
    assert assign(Candidates(scores, boxes), 0.5) == [0, None]
    assert assign(Candidates(np.zeros((2, 0)), np.zeros((0, 4))), 0.3) == [None, None]


def test_phrases_are_short_and_tell_characters_apart():
    assert phrases(CAST) == {"fox": "a young orange fox", "frog": "a round green frog"}
    twins = [
        Character(id="Older Woman", appearance="She has gray hair in a bun, wears glasses."),
        Character(id="A", appearance="A man with brown hair, wearing a brown suit."),
        Character(id="B", appearance="A man with brown hair, wearing a black coat."),
        Character(id="Grum", appearance="Grum, a huge yeti (#20b0a0) who never smiles"),
        Character(id="nobody", appearance=""),
    ]
    found = phrases(twins)
    assert found["Older Woman"].startswith("Older Woman with gray hair")
    assert found["A"] == "A man with brown hair wearing a brown suit"
    assert "black coat" in found["B"]
    assert found["Grum"] == "a huge yeti"
    assert found["nobody"] == "nobody"
    assert all("." not in phrase and phrase for phrase in found.values()), "full stops part GroundingDINO's phrases"


def test_sam3_loads_from_the_published_layout(sam3, tmp_path):
    """There the detector is a part of the video model: its configuration and its weights lie one level down."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(sam3, tmp_path / "published")
    config = json.loads((sam3 / "config.json").read_text())
    video = {"model_type": "sam3_video", "architectures": ["Sam3VideoModel"], "detector_config": config}
    (folder / "config.json").write_text(json.dumps(video))
    weights = {f"detector_model.{name}": value for name, value in load_file(sam3 / "model.safetensors").items()}
    weights["tracker_neck.unused"] = torch.zeros(1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    check_segmenter(f"sam3:{folder}")
    plain, published = (segmenter_of(f"sam3:{path}", device="cpu").model for path in (sam3, folder))
    plain.threshold = published.threshold = 0.0
    assert published.square == plain.square
    torch.testing.assert_close(dict(published.model.named_parameters()), dict(plain.model.named_parameters()))
    images, prompts = [shot()[0].image], ["a young orange fox", "a round green frog"]
    for a, b in zip(plain.masks(images, prompts)[0], published.masks(images, prompts)[0], strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a == b).all()
