import numpy as np
import pytest
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from animeshooter_dataset import AnnotatedBy, DataError
from curation.listener import HEARD_RATE, Clip, listener_of
from curation.script import NoAnswer
from curation.tagger import kind_of

LABELS = ("Speech", "Rain", "Music", "Meow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny classifier without training that always says the same: rain, and a little music."""
    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_mel_bins=32,
        max_length=128,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: place for place, label in enumerate(LABELS)},
    )
    model = ASTForAudioClassification(config)
    with torch.no_grad():
        model.classifier.dense.weight.zero_()
        model.classifier.dense.bias.copy_(torch.tensor([-9.0, 2.0, -1.0, -9.0]))
    folder = tmp_path_factory.mktemp("ast")
    model.save_pretrained(folder)
    ASTFeatureExtractor(num_mel_bins=32, max_length=128).save_pretrained(folder)
    return folder


def clip(seconds):
    wave = 0.1 * np.random.default_rng(0).standard_normal((1, round(seconds * HEARD_RATE))).astype(np.float32)
    return Clip(0.0, seconds, wave, [], "", [])


@pytest.mark.parametrize("seconds", [3.5, 24.0])
def test_a_classifier_names_what_it_hears_and_how_sure_it_is(folder, seconds):
    listener = listener_of(f"local:{folder}")
    heard = listener.listen(clip(seconds))
    assert heard.type == "ambience"
    assert heard.sound_description == "A sound classifier names: Rain (88%), Music (27%)."
    assert heard.visual_context == ""
    assert listener.annotator == AnnotatedBy(kind="local", model=folder.name)


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("Male speech, man speaking", "speech"),
        ("Musical instrument", "music"),
        ("Rain on surface", "ambience"),
        ("Inside, small room", "ambience"),
        ("Silence", "silence"),
        ("Walk, footsteps", "sound effect"),
        ("Train", "sound effect"),
    ],
)
def test_labels_are_sorted_into_kinds(label, kind):
    assert kind_of(label) == kind


def test_a_model_that_is_not_there_or_pickled_is_refused_in_one_line(tmp_path, folder):
    torch.save({}, tmp_path / "pytorch_model.bin")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for name in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(NoAnswer, match="cannot be loaded") as problem:
            listener_of(f"local:{name}").listen(clip(3.5))
        assert "\n" not in str(problem.value)


def test_no_sound_is_not_classified(folder):
    with pytest.raises(DataError, match="no sound"):
        listener_of(f"local:{folder}").listen(clip(0))
