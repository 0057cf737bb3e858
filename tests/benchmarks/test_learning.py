"""The measures of learning on pictures whose answer is known, and a small run that really learns."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.learning_films import BODIES, COLOURS, HELD_OUT, Studio, Told, recoloured, stories, truth_of, write
from benchmarks.learning_films import Story as Drawn
from benchmarks.learning_measures import (
    Swapped,
    batches_of,
    colour_inside,
    compared,
    held_out_loss,
    lab,
    nearest,
    pairs_to_swap,
    swap,
    swap_summary,
    video_of,
)
from recipes import pretrain
from recipes.config import override
from recipes.parts import load_gen
from recipes.trainer import main

RED, BLUE, GREY = (220, 30, 30), (30, 40, 220), (128, 128, 128)


def clip(colour, background=GREY):
    """A coloured square on a background, and its mask."""
    frames = np.full((9, 64, 96, 3), background, np.uint8)
    share = np.zeros((9, 64, 96), np.float32)
    share[:, 20:44, 30:60] = 1.0
    frames[share > 0] = colour
    return frames, share


# ---- stories ----


def test_pairs_of_character_and_colour_that_are_held_out_are_in_no_other_split():
    made = stories(each=2, held_out=1)
    for story in made:
        assert (story.split == "validation") == (story.colour in HELD_OUT[story.body])
    assert {(story.body, story.colour) for story in made} == {(body, colour) for body in BODIES for colour in COLOURS}
    assert len({story.video for story in made}) == len(made)


def test_only_descriptive_captions_name_the_colour():
    for story in stories(each=1, held_out=1):
        for place in range(len(story.shots)):
            assert story.colour in story.caption(place, "descriptive")
            assert not set(COLOURS) & set(story.caption(place, "narrative").split())


def test_recolouring_turns_the_body_and_leaves_the_rest():
    text = 'fill="#58b545" stroke="#e23b4a" other="#888888"'
    turned = recoloured(text, BODIES["frog"].hues, COLOURS["blue"])
    assert "#e23b4a" in turned
    assert "#888888" in turned
    assert "#58b545" not in turned
    red, green, blue = (int(turned[7 + place : 9 + place], 16) for place in (0, 2, 4))
    assert blue > green > red


def test_a_drawn_character_has_the_colour_of_its_story_inside_its_mask():
    shots = (Told("street", "left", "idle"),)
    found = {}
    for colour in ("red", "blue"):
        frames, shares, cutouts = Studio().draw(Drawn(0, "frog", colour, COLOURS[colour], shots, "train"))
        assert frames[0].shape == (9, 64, 96, 3)
        assert cutouts[0].shape[2] == 4
        assert 0.05 < (shares[0] > 0.5).mean() < 0.6
        found[colour] = colour_inside(frames[0], shares[0])
    assert found["red"][1] > 20
    assert found["red"][2] > 0
    assert found["blue"][2] < -10


# ---- measures ----


def test_the_colour_of_a_character_is_that_of_its_mask_alone():
    for background in (GREY, BLUE):
        found = colour_inside(*clip(RED, background))
        assert np.allclose(found, lab(np.array([[RED]], np.uint8))[0, 0], atol=0.5)
    with pytest.raises(ValueError, match="nowhere"):
        colour_inside(clip(RED)[0], np.zeros((9, 64, 96)))


def samples_and_truth():
    samples, truth, references = [], {}, {}
    for video, colour in (("frog-red-0", RED), ("frog-blue-1", BLUE)):
        references[video] = colour
        for shot in range(2):
            frames, share = clip(colour)
            key = f"{video}-000-{shot:03}"
            samples.append(SimpleNamespace(keys=(key,), narrative=("It waits.",), frames=frames[None]))
            truth[key] = share
    return samples, truth, references


PAIRS = [("frog-red-0", "frog-blue-1"), ("frog-blue-1", "frog-red-0")]


def test_a_model_that_paints_the_reference_goes_the_whole_way_and_one_that_does_not_look_stays():
    samples, truth, references = samples_and_truth()
    found = swap_summary(swap(lambda picture, caption, seed: clip(picture or GREY)[0], samples, references, truth, PAIRS))
    assert found["shots"] == 4
    assert found["kept"]["way"]["mean"] == pytest.approx(0, abs=1e-6)
    assert found["swapped"]["way"]["mean"] == pytest.approx(1, abs=1e-6)
    assert found["swapped"]["nearer to other"] == found["swapped"]["at the other"] == 1
    assert found["blank"]["at the other"] == 0
    assert found["kept"]["nearer to other"] == 0
    assert found["way moved, swapped against kept"]["mean"] == pytest.approx(1, abs=1e-6)
    assert 0.2 < found["blank"]["way"]["mean"] < 0.8
    blind = swap_summary(swap(lambda picture, caption, seed: clip(RED)[0], samples, references, truth, PAIRS))
    assert blind["way moved, swapped against kept"]["mean"] == 0
    assert blind["swapped"]["nearer to other"] == 0.5


def test_the_way_is_measured_along_the_line_between_the_two_colours():
    own, other = np.array([50.0, 0, 0]), np.array([50.0, 40, 0])
    one = Swapped(own, other, own, other, own)
    assert one.way(np.array([90.0, 10, 5])) == pytest.approx(0.25)


def test_stories_change_references_with_one_of_the_same_body_in_another_colour():
    told = [("a", "frog", "red"), ("b", "frog", "red"), ("c", "frog", "blue"), ("d", "cat", "red")]
    pairs = dict(pairs_to_swap(told))
    assert pairs == {"a": "c", "b": "c", "c": "a"}
    assert video_of("frog-red-000-a-000-002") == "frog-red-000-a"


def test_sampled_latents_count_when_their_own_target_is_the_nearest():
    targets = [torch.zeros(3), torch.ones(3), 3 * torch.ones(3)]
    told = nearest([[0.1 * torch.ones(3)] * 2, [0.2 * torch.ones(3), torch.ones(3)], [2.5 * torch.ones(3)] * 2], targets)
    assert told["closest to their own"] == pytest.approx(5 / 6)
    assert told["distances"][0] == pytest.approx([0.01, 0.81, 8.41])
    assert told["chance"] == pytest.approx(1 / 3)


def test_two_losses_are_compared_sample_by_sample():
    told = compared(np.array([1.0, 2.0]), np.array([0.5, 2.5]))
    assert (told["before"], told["after"], told["lower by"], told["samples that fell"]) == (1.5, 1.5, 0.0, 0.5)


# ---- a run ----


@pytest.fixture(scope="module")
def one_story(tmp_path_factory):
    directory = tmp_path_factory.mktemp("learning") / "films"
    chosen = next(story for story in stories(each=1, held_out=1) if story.split == "train")
    write(directory, [chosen])
    return directory


def test_the_truth_lies_beside_the_dataset_for_every_shot(one_story):
    with np.load(truth_of(one_story)) as truth:
        assert len(truth) == 4
        assert all(share.shape == (9, 64, 96) for share in truth.values())


def test_stage_0_brings_the_loss_of_one_story_down(one_story, tmp_path):
    torch.set_num_threads(1)
    vae, out = tmp_path / "vae", tmp_path / "out"
    data = ["--data", str(one_story)]
    assert main(pretrain.VAE_STAGE, [*data, "--out", str(vae), "--preset", "tiny", "--set", "train.steps=8"]) == 0
    changes = ["train.steps=60", "train.learning_rate=3e-3", "dropout.caption=0"]
    settings = [word for change in changes for word in ("--set", change)]
    assert main(pretrain.STAGE, [*data, "--out", str(out), "--from", str(vae), *settings]) == 0
    config = override(pretrain.PRESETS["tiny"], changes)
    losses = [held_out_loss(pretrain.STAGE, config, load_gen(config, path), one_story, "train") for path in (vae, out)]
    told = compared(*losses)
    assert told["samples"] == 4
    assert told["lower by, per cent"] > 25
    assert len([sample for batch in batches_of(pretrain.STAGE, config, one_story, "train") for sample in batch.samples]) == 4
