import itertools

import pytest
import torch
from families import NAMES, QUERIES, parts

from model.images import as_references
from model.memory import ConditionPolicy
from model.mllm import StoryReader, shot_context, story_contexts

POLICIES = {
    "paper": ConditionPolicy(),
    "first and last": ConditionPolicy("first_last"),
    "four frames": ConditionPolicy("frames:4"),
    "one shot back": ConditionPolicy(shots_back=1),
    "no captions": ConditionPolicy(memory_captions=False),
    "first and last, one back, no captions": ConditionPolicy("first_last", 1, memory_captions=False),
    "nothing": ConditionPolicy(shots_back=0),
}
CAPTIONS = ["a fox", "it runs", "home"]


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """A reader and its queries of each family."""
    made = {}
    for family in NAMES:
        mllm, tokenizer, processor = parts(family, tmp_path_factory.mktemp(family) / "nvila")
        generator = torch.Generator().manual_seed(1)
        made[family] = StoryReader(mllm, tokenizer, processor, QUERIES), torch.randn(QUERIES, 64, generator=generator)
    return made


@pytest.fixture
def clip(picture):
    """clip(k): five frames of noise."""
    return lambda seed: [picture(100 * seed + frame) for frame in range(5)]


def conditions(reader, queries, policy, reference, captions, clips):
    """States of every shot as training reads them, [n, QUERIES, D]."""
    sequences = story_contexts(policy, as_references(reference), captions, [policy.of_clip(one) for one in clips])
    with torch.no_grad():
        states = reader.query_states(sequences, queries, last=len(sequences) > 1)
    return states.flatten(0, 1)


def changed(before, after):
    """Of each shot, whether its states are others."""
    return [bool((one - other).abs().max() > 1e-4) for one, other in zip(before, after, strict=True)]


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("family", NAMES)
def test_a_shot_knows_what_the_policy_says_and_nothing_later(readers, family, policy, picture, clip):
    reader, queries = readers[family]
    clips = [clip(1), clip(2)]

    def read(reference=0, captions=CAPTIONS, clips=clips):
        return conditions(reader, queries, policy, picture(reference), captions, clips)

    before = read()
    assert before.shape == (3, QUERIES, 64)
    assert changed(before, read(reference=9)) == [True] * 3
    for shot in range(3):
        other = [*CAPTIONS[:shot], "the sea at night", *CAPTIONS[shot + 1 :]]
        told = [seen == shot or (policy.memory_captions and shot in policy.window(seen)) for seen in range(3)]
        assert changed(before, read(captions=other)) == told
    for shot in range(2):
        for frame in range(5):
            other = [[*one] for one in clips]
            other[shot][frame] = picture(7)
            seen = frame in remembered_frames(policy)
            told = [seen and shot in policy.window(later) for later in range(3)]
            assert changed(before, read(clips=other)) == told, (shot, frame)


def remembered_frames(policy):
    return [frame for frame in range(5) if frame in policy.of_clip(range(5))]


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_generation_shot_by_shot_reads_what_training_read(readers, policy, picture, clip):
    reader, queries = readers["qwen3_vl"]
    clips = [clip(1), clip(2)]
    trained = conditions(reader, queries, policy, picture(0), CAPTIONS, clips)
    for shot in range(3):
        memory = [policy.of_clip(one) for one in clips[:shot]]
        sequence = shot_context(policy, as_references(picture(0)), CAPTIONS[: shot + 1], memory)
        with torch.no_grad():
            generated = reader.query_states([sequence], queries, last=True)[0, 0]
        assert torch.allclose(generated, trained[shot], atol=1e-4)


def test_only_what_hides_something_takes_a_sequence_a_shot(picture):
    taken = {
        name: len(story_contexts(policy, as_references(picture(0)), CAPTIONS, [[picture(1)], [picture(2)]]))
        for name, policy in POLICIES.items()
        if policy.frames == 1
    }
    assert taken == {"paper": 1, "one shot back": 3, "no captions": 3, "nothing": 3}
    two = ConditionPolicy(shots_back=2)
    assert len(story_contexts(two, as_references(picture(0)), CAPTIONS, [[picture(1)], [picture(2)]])) == 1


@pytest.mark.parametrize(
    ("memory", "frames"),
    [
        ("last", [8]),
        ("frames:1", [8]),
        ("first_last", [0, 8]),
        ("frames:2", [0, 8]),
        ("frames:3", [0, 4, 8]),
        ("frames:4", [0, 3, 5, 8]),
        ("frames:9", list(range(9))),
    ],
)
def test_frames_are_spread_from_the_first_to_the_last(memory, frames):
    assert ConditionPolicy(memory).of_clip(range(9)) == frames


def test_ends_of_a_shot_may_lie_outside_its_clip():
    assert ConditionPolicy("frames:3").pick("first", range(9), "last") == ["first", 4, "last"]
    assert ConditionPolicy("first_last").pick("first", None, "last") == ["first", "last"]
    with pytest.raises(ValueError, match=r"frames:3 .* the clip is not there"):
        ConditionPolicy("frames:3").pick("first", None, "last")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"memory": "frames:0"}, "frames:K with K from 1 to 99, not 'frames:0'"),
        ({"memory": "all"}, "not 'all'"),
        ({"shots_back": -1}, "at least 0"),
        ({"captions": "short"}, "one of descriptive, narrative, both"),
        ({"references": 0}, "at least 1"),
    ],
)
def test_what_is_no_policy_is_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        ConditionPolicy(**settings)


def test_a_policy_comes_back_from_a_checkpoint_and_an_old_checkpoint_has_the_papers():
    policy = ConditionPolicy("frames:4", 2, False, "both", 3)
    assert ConditionPolicy.from_dict(policy.as_dict()) == policy
    assert ConditionPolicy.from_dict(None) == ConditionPolicy() == POLICIES["paper"]
    with pytest.raises(ValueError, match="has colour, which this version does not know"):
        ConditionPolicy.from_dict({"colour": "red"})


def test_windows_never_reach_the_shot_itself():
    for back, shot in itertools.product((None, 0, 1, 5), range(4)):
        window = ConditionPolicy(shots_back=back).window(shot)
        assert all(0 <= earlier < shot for earlier in window)
        assert len(window) == (shot if back is None else min(back, shot))
