from types import SimpleNamespace

import cv2
import films
import numpy as np
import pytest
import tiny_dataset
from PIL import Image, ImageDraw, ImageFont

from animeshooter_dataset import DataError
from curation.clips import ClipInfo, FilmShots
from curation.cuts import Span
from curation.judge import ShotVerdict
from curation.scores import ScoresConfig, load_aesthetic, open_clip, plan_of, score_shots
from curation.script import NoAnswer

WIDTH, HEIGHT = 320, 180
DIAGONAL = (WIDTH**2 + HEIGHT**2) ** 0.5
QUICK = ScoresConfig(text=False)


@pytest.fixture(scope="module")
def texture():
    """A wide picture with detail at every scale."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, 1200, 3), dtype=np.uint8)
    soft = cv2.GaussianBlur(noise, (0, 0), 4).astype(np.float32)
    return np.clip((soft - soft.mean()) * 5 + 128, 0, 255).astype(np.uint8)


def view(texture, x):
    """What a camera at ``x`` sees; fractions of a pixel count."""
    shift = np.float32([[1, 0, -x], [0, 1, 0]])
    return cv2.warpAffine(texture, shift, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)


def film(folder, frames, times, repeat=None, spans=None, confidence=None):
    """A film of stored clips, one a span, with the measures that its one decode would have made."""
    frames, times = np.stack(frames), np.asarray(times, float)
    if repeat is None:
        repeat = [index > 0 and np.array_equal(frames[index], frames[index - 1]) for index in range(len(frames))]
    spans = spans or [Span(0, len(frames), 0, len(frames), "start")]
    clips, infos = [], []
    for number, span in enumerate(spans):
        part = slice(span.start_frame, span.end_frame)
        ticks = [round(1000 * (time - times[span.start_frame])) for time in times[part]]
        clips.append(folder / f"{number:05d}.mp4")
        clips[-1].write_bytes(tiny_dataset.encode(frames[part], ticks))
        infos.append(ClipInfo(len(ticks), 24.0, frames.shape[1], frames.shape[2], False))
    cuts = [span.start_frame for span in spans if span.transition_in == "cut"]
    measures = SimpleNamespace(pts=times, mean_rgb=frames.mean(axis=(1, 2)).astype(np.float32), repeat=np.array(repeat))
    found = SimpleNamespace(cuts=cuts, confidence=confidence or [0.9] * len(cuts), frames=measures)
    return FilmShots(None, found, spans, [], clips, infos)


def pan(folder, texture, speed, holds, fps, frames=60):
    """A pan of ``speed`` diagonals a second; ``holds`` frames stand for each drawing, in turn."""
    drawings = [index for index in range(frames) for _ in range(holds[index % len(holds)])][:frames]
    seconds = {drawing: drawings.index(drawing) / fps for drawing in drawings}
    if holds == (1, 1, 1, 2):  # 24 a second carried at 30
        seconds = {drawing: drawing / 24 for drawing in drawings}
    pictures = [view(texture, 100 + speed * DIAGONAL * seconds[drawing]) for drawing in drawings]
    repeat = [index > 0 and drawings[index] == drawings[index - 1] for index in range(frames)]
    return film(folder, pictures, [index / fps for index in range(frames)], repeat)


@pytest.mark.parametrize("speed", [0.1, 0.3])
@pytest.mark.parametrize(("holds", "fps"), [((1,), 24), ((2,), 24), ((3,), 24), ((1, 1, 1, 2), 30), ((1,), 12), ((2, 3), 30)])
def test_the_same_pan_has_the_same_motion_however_it_is_timed(tmp_path, texture, speed, holds, fps):
    (scores,) = score_shots(pan(tmp_path, texture, speed, holds, fps), QUICK)
    assert scores.motion == pytest.approx(speed, rel=0.06, abs=0.012)


def test_frames_that_repeat_are_held_and_do_not_move(tmp_path, texture):
    still = [view(texture, 100)] * 48
    (scores,) = score_shots(film(tmp_path, still, np.arange(48) / 24), QUICK)
    assert scores.held_frames == 1
    assert scores.motion == pytest.approx(0, abs=1e-3)
    (scores,) = score_shots(pan(tmp_path, texture, 0.1, (2,), 24), QUICK)
    assert scores.held_frames == pytest.approx(0.5, abs=0.02)


def test_a_drift_too_slow_to_show_from_frame_to_frame_is_measured(tmp_path, texture):
    slow = [view(texture, 100 + 0.1 * index) for index in range(60)]
    (scores,) = score_shots(film(tmp_path, slow, np.arange(60) / 24, repeat=[False] + [True] * 59), QUICK)
    assert scores.motion == pytest.approx(2.4 / DIAGONAL, rel=0.15)


def test_one_frame_has_no_motion_to_measure(tmp_path, texture):
    (scores,) = score_shots(film(tmp_path, [view(texture, 0)], [0.0]), QUICK)
    assert scores.motion is None
    assert scores.held_frames is None
    assert scores.contrast > 10


def test_frames_of_transitions_are_left_out(tmp_path, texture):
    white = [np.full((HEIGHT, WIDTH, 3), 255, np.uint8)] * 12
    shown = [view(texture, 100 + 2 * index) for index in range(36)]
    clean = Span(0, 60, 12, 48, "start")
    (scores,) = score_shots(film(tmp_path, white + shown + white, np.arange(60) / 24, spans=[clean]), QUICK)
    assert scores.held_frames == 0
    assert 100 < scores.brightness < 160
    assert scores.motion == pytest.approx(48 / DIAGONAL, rel=0.06)


def test_light_and_colour(tmp_path, texture):
    black = [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 12
    grey = [cv2.cvtColor(cv2.cvtColor(view(texture, 3 * index), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) for index in range(24)]
    colour = [view(texture, 3 * index) for index in range(24)]
    blurred = [cv2.GaussianBlur(image, (0, 0), 6) for image in colour]
    frames = [*black, *grey, *colour, *blurred]
    spans = [Span(0, 12, 0, 12, "start"), *(Span(at, at + 24, at, at + 24, "cut") for at in (12, 36, 60))]
    dark, plain, bright, soft = score_shots(film(tmp_path, frames, np.arange(84) / 24, spans=spans), QUICK)
    assert (dark.black_frames, plain.black_frames, bright.black_frames) == (1, 0, 0)
    assert (dark.grey_frames, plain.grey_frames, bright.grey_frames) == (None, 1, 0)
    assert dark.brightness < 3 < 100 < bright.brightness < 160
    assert dark.contrast < 1 < 15 < plain.contrast
    assert dark.motion is None
    assert soft.sharpness < 0.8 * bright.sharpness
    assert (dark.cut_confidence, plain.cut_confidence) == (None, 0.9)


def test_a_shot_half_black_is_half_black(tmp_path, texture):
    frames = [np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 12 + [view(texture, 0)] * 12
    (scores,) = score_shots(film(tmp_path, frames, np.arange(24) / 24), QUICK)
    assert scores.black_frames == 0.5


def test_bars_of_the_film_are_left_out_of_what_is_measured(tmp_path, texture):
    boxed = [np.pad(view(texture, 3 * index)[20:160], ((20, 20), (0, 0), (0, 0))) for index in range(24)]
    whole = film(tmp_path, boxed, np.arange(24) / 24)
    (open_,), (framed,) = score_shots(whole, QUICK), score_shots(whole, QUICK, picture=(0, 20, WIDTH, 160))
    assert open_.picture_share == 1
    assert framed.picture_share == pytest.approx(140 / 180, abs=1e-6)
    assert framed.contrast < open_.contrast


def test_text_covers_the_share_it_stands_on(tmp_path, texture):
    card = Image.new("RGB", (640, 360), (30, 60, 120))
    ImageDraw.Draw(card).text((120, 150), "THE LAST VOYAGE", fill="white", font=ImageFont.load_default(48))
    plain = Image.new("RGB", (640, 360), (30, 60, 120))
    frames = [np.asarray(card)] * 12 + [np.asarray(plain)] * 12
    spans = [Span(0, 12, 0, 12, "start"), Span(12, 24, 12, 24, "cut")]
    titled, bare = score_shots(film(tmp_path, frames, np.arange(24) / 24, spans=spans))
    assert 0.03 < titled.text_cover < 0.2
    assert bare.text_cover == 0


def test_the_same_clips_give_the_same_scores_whatever_opencv_was_set_to(tmp_path, texture):
    whole, before = pan(tmp_path, texture, 0.2, (1,), 24), cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        first = score_shots(whole, QUICK)
        cv2.setNumThreads(2)
        assert score_shots(whole, QUICK) == first
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def torn(data):
    return data[: len(data) // 2]


def scrambled(data):
    """Noise in place of the pictures; the tables that say where they lie stay whole."""
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    return data[:start] + np.random.default_rng(1).bytes(end - start) + data[end:]


@pytest.mark.parametrize("spoil", [torn, scrambled, lambda data: b"", lambda data: b"no film"])
def test_a_clip_that_does_not_decode_is_an_error_that_names_it(tmp_path, texture, spoil):
    whole = pan(tmp_path, texture, 0.1, (1,), 24)
    whole.clips[0].write_bytes(spoil(whole.clips[0].read_bytes()))
    with pytest.raises(DataError, match=r"00000\.mp4") as error:
        score_shots(whole, QUICK)
    assert "\n" not in str(error.value)


def test_a_clip_of_another_length_is_an_error(tmp_path, texture):
    whole = pan(tmp_path, texture, 0.1, (1,), 24)
    whole.clips[0].write_bytes(tiny_dataset.encode(np.stack([view(texture, 0)] * 30), [40 * n for n in range(30)]))
    with pytest.raises(DataError, match="holds 30 frames, 60 were stored"):
        score_shots(whole, QUICK)


@pytest.mark.parametrize("wanted", [[0, 7, 49, 50, 98, 99], [99], [11, 12, 13, 60], list(range(100))])
def test_single_frames_are_those_of_the_clip(tmp_path, wanted):
    clip = films.write_film(tmp_path / "clip.mp4", frames=100, options={"g": "12", "bf": "3"})
    with open_clip(clip, 100) as opened:
        assert opened.keys == list(range(0, 100, 12))
        found = [(index, films.read_number(frame.to_ndarray(format="rgb24"))) for index, frame in opened.frames(wanted)]
    assert found == [(index, index) for index in wanted]


def test_what_is_looked_at_is_bounded_and_lies_in_the_clean_frames():
    repeat, pts = np.zeros(2400, bool), np.arange(2400) / 24
    plan = plan_of(Span(0, 2400, 100, 2300, "start"), repeat, pts, range(0, 2400, 48), QUICK)
    assert len(plan.pairs) <= QUICK.most_windows * QUICK.pairs
    assert 2 <= len(plan.stills) <= QUICK.most_windows
    looked = [index for pair in plan.pairs for index in pair] + list(plan.stills)
    assert min(looked) >= 100
    assert max(looked) < 2300
    assert max(looked) - min(looked) > 1000


class Verdicts:
    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def shot(self, frames):
        self.asked.append(frames)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_judge_sees_stills_and_its_verdict_is_kept(tmp_path, texture):
    whole = pan(tmp_path, texture, 0.1, (1,), 24)
    judge = Verdicts(ShotVerdict(style="2D", talking=False), DataError("no usable answer"), NoAnswer("no key"))
    (scores,) = score_shots(whole, QUICK, judge)
    assert (scores.style, scores.talking) == ("2D", False)
    assert all(frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8 for frame in judge.asked[0])
    (scores,) = score_shots(whole, QUICK, judge)
    assert (scores.style, scores.talking) == (None, None)
    with pytest.raises(NoAnswer):
        score_shots(whole, QUICK, judge)


@pytest.fixture(scope="module")
def clip_model(tmp_path_factory):
    """A CLIP of random weights, a few kilobytes large, with its image processor."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config={**small, "image_size": 32, "patch_size": 16},
        text_config={**small, "vocab_size": 20, "max_position_embeddings": 8},
        projection_dim=12,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def write_head(path, width=12, chain=False):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    if chain:
        sizes = [(width, 8), (8, 1)]
        tensors = {}
        for number, (into, out) in zip((0, 2), sizes):
            tensors[f"layers.{number}.weight"], tensors[f"layers.{number}.bias"] = torch.randn(out, into), torch.randn(out)
    else:
        tensors = {"weight": torch.randn(1, width), "bias": torch.randn(1)}
    save_file(tensors, path)
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("chain", [False, True])
def test_the_aesthetic_score_is_the_head_on_the_normalised_embedding(tmp_path, texture, clip_model, chain):
    import torch
    from transformers import CLIPImageProcessor, CLIPModel

    head = tmp_path / f"head{chain}.safetensors"
    tensors = write_head(head, chain=chain)
    image = view(texture, 50)
    model, processor = CLIPModel.from_pretrained(clip_model), CLIPImageProcessor.from_pretrained(clip_model)
    with torch.inference_mode():
        vision = model.vision_model(processor(images=[Image.fromarray(image)], return_tensors="pt")["pixel_values"])
        value = model.visual_projection(vision.pooler_output)[0].double().numpy()
    value = value / np.linalg.norm(value)
    for name in sorted(name for name in tensors if name.endswith("weight")):
        value = tensors[name] @ value + tensors[name.replace("weight", "bias")]
    assert load_aesthetic(str(clip_model), str(head))([image]) == pytest.approx(value.tolist(), abs=1e-4)
    config = ScoresConfig(text=False, aesthetic_model=str(clip_model), aesthetic_head=str(head))
    (scores,) = score_shots(film(tmp_path, [image] * 24, np.arange(24) / 24), config)
    assert scores.aesthetic == pytest.approx(float(value[0]), abs=0.05)


def test_without_weights_nothing_is_scored(tmp_path, texture, clip_model):
    whole = pan(tmp_path, texture, 0.1, (1,), 24)
    assert score_shots(whole, QUICK)[0].aesthetic is None


def test_weights_that_cannot_be_read_are_one_line(tmp_path, texture, clip_model):
    whole, head = pan(tmp_path, texture, 0.1, (1,), 24), tmp_path / "head.safetensors"
    write_head(head, width=13)
    wrong = [
        (str(clip_model), str(tmp_path / "none.safetensors"), "no aesthetic head"),
        (str(clip_model), str(head), "embeddings of 13 numbers"),
        (str(tmp_path), str(head), "no CLIP model"),
    ]
    for model, path, message in wrong:
        with pytest.raises(DataError, match=message) as error:
            score_shots(whole, ScoresConfig(text=False, aesthetic_model=model, aesthetic_head=path))
        assert "\n" not in str(error.value)
