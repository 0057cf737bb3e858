import json
import shutil
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from plain_sets import write_clips
from safetensors.torch import load_file
from tiny_diffusion import write_image_to_video, write_ip_adapter, write_sdxl

from animeshooter_dataset import DataError
from recipes.baselines import cogvideo_lora, ip_adapter_i2v
from recipes.baselines.cogvideo_lora import baseline_main, load_plain
from recipes.baselines.ip_adapter_i2v import Sampling, Weights, check_weights, cover, key_frames

SAMPLING = Sampling(key_height=32, key_width=48, key_steps=2, frames=9, height=64, width=96, steps=2)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "story.json"
    path.write_text(json.dumps({"captions": ["Red walks on.", "Red meets Blue.", "Both rest."]}))
    return path


def frames_of(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def check_layout(out):
    """What `animeshooter generate` leaves: a clip a shot, all of them, and what made them."""
    told = json.loads((out / "story.json").read_text())
    assert told["shots"] == ["shot_1.mp4", "shot_2.mp4", "shot_3.mp4"]
    assert len(told["captions"]) == 3
    shots = [frames_of(out / name) for name in told["shots"]]
    assert {shot.shape for shot in shots} == {(told["frames"], told["height"], told["width"], 3)}
    assert len(frames_of(out / "story.mp4")) == 3 * told["frames"]
    return told, shots


# ---- CogVideo-LoRA ----


@pytest.fixture(scope="module")
def trained(chain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("baseline")
    write_clips(folder / "fox")
    torch.set_num_threads(1)
    arguments = ["--clips", str(folder / "fox"), "--from", str(chain["multi_shot"]), "--out", str(folder / "out")]
    assert baseline_main([*arguments, "--set", "train.steps=3"]) == 0
    return folder / "out"


def test_a_batch_is_the_clips_of_stage_4_one_by_one(trained):
    record = json.loads((trained / "training.json").read_text())
    assert (record["stage"], record["config"]["train"]["global_batch"], record["config"]["data"]["shots"]) == (
        "cogvideo_lora",
        6,
        1,
    )
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert all(len(line["samples"]) == 6 and not any("+" in one for one in line["samples"]) for line in lines)


def test_plain_diffusers_takes_the_lora_and_it_does_something(trained):
    pipeline = load_plain(trained)
    assert pipeline.get_list_adapters()["transformer"]
    length = pipeline.transformer.config.max_text_seq_length

    def sampled():
        generator = torch.Generator().manual_seed(0)
        size = {"num_frames": 9, "height": 64, "width": 96, "num_inference_steps": 2, "max_sequence_length": length}
        return torch.as_tensor(pipeline("Red walks.", generator=generator, output_type="latent", **size).frames)

    with_lora = sampled()
    pipeline.unload_lora_weights()
    assert not torch.allclose(with_lora, sampled(), atol=1e-5)


def test_the_loss_is_that_of_plain_text_to_video(chain, trained):
    """The condition is the text encoder's features, whatever the reference: the MLLM is not asked."""
    from recipes.data import open_stream
    from recipes.stage import StageModule, load_model

    stage = cogvideo_lora.STAGE
    config = stage.presets["tiny"]
    gen = load_model(stage, config, chain["multi_shot"])

    def unasked(*_, **__):
        raise AssertionError("the MLLM was asked")

    gen.mllm.forward = unasked
    stream = open_stream(stage, config, write_clips(trained.parent / "again"))
    (batch,) = next(stream.batches())
    found = StageModule(gen, stage, config)(batch)
    assert found.per_sample.shape == (6,)
    assert found.per_sample.requires_grad


def test_a_model_with_the_second_pathway_is_refused(chain, trained, tmp_path, capsys):
    """Plain diffusers would lack the LoRA that came with it, under which this one was trained."""
    arguments = ["--clips", str(trained.parent / "fox"), "--from", str(chain["multi_shot"]), "--out", str(tmp_path / "out")]
    assert baseline_main([*arguments, "--set", "condition.pathway=latents"]) == 2
    assert "start from a checkpoint without the second pathway" in capsys.readouterr().err


def test_a_story_of_the_plain_pipeline_has_the_usual_layout(trained, script, tmp_path):
    command = ["generate", str(trained), "--script", str(script), "--out", str(tmp_path / "story"), "--steps", "2"]
    assert baseline_main(command) == 0
    told, shots = check_layout(tmp_path / "story")
    assert (told["system"], told["checkpoint"]["stage"], told["references"]) == ("CogVideo-LoRA", "cogvideo_lora", [])
    assert shots[0].shape == (9, 64, 96, 3)


def test_generating_refuses_what_is_not_its_own(chain, trained, script, tmp_path, capsys):
    command = ["generate", str(chain["lora"]), "--script", str(script), "--out", str(tmp_path / "story")]
    assert baseline_main(command) == 2
    assert "a checkpoint of stage lora; this generates with those of cogvideo_lora" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").write_text("")
    assert baseline_main(["generate", str(trained), "--script", str(script), "--out", str(tmp_path / "taken")]) == 2
    assert "taken: exists already" in capsys.readouterr().err


# ---- IP-Adapter + image to video ----


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    write_sdxl(folder / "sdxl")
    write_ip_adapter(folder / "adapter")
    write_image_to_video(folder / "video")
    return Weights(sdxl=str(folder / "sdxl"), adapter=str(folder / "adapter"), video=str(folder / "video"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "red.png"
    Image.new("RGB", (40, 40), (230, 20, 20)).save(path)
    return path


def command(weights, reference, script, out):
    sizes = ["--key-height", "32", "--key-width", "48", "--key-steps", "2"]
    sizes += ["--frames", "9", "--height", "64", "--width", "96", "--steps", "2"]
    models = ["--sdxl", weights.sdxl, "--adapter", weights.adapter, "--video", weights.video]
    return ["--reference", str(reference), "--script", str(script), "--out", str(out), *models, *sizes]


def test_a_story_is_made_by_diffusers_own_pipelines(weights, reference, script, tmp_path, capsys):
    assert ip_adapter_i2v.main(command(weights, reference, script, tmp_path / "story")) == 0
    told, shots = check_layout(tmp_path / "story")
    assert told["system"] == "IP-Adapter + I2V"
    assert told["settings"]["scale"] == 0.6
    assert told["references"][0]["path"] == str(reference)
    for number, shot in enumerate(shots, 1):
        assert Image.open(tmp_path / "story" / f"key_{number}.png").size == (96, 64)
        assert shot.shape == (9, 64, 96, 3)
    assert (tmp_path / "story" / "shot_3.mp4").read_bytes() != (tmp_path / "story" / "shot_1.mp4").read_bytes()


def test_a_pickled_image_encoder_is_not_loaded(weights, reference, script, tmp_path, capsys):
    shutil.copytree(weights.adapter, tmp_path / "adapter")
    folder = tmp_path / "adapter" / "sdxl_models" / "image_encoder"
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    pickled = replace(weights, adapter=str(tmp_path / "adapter"))
    assert ip_adapter_i2v.main(command(pickled, reference, script, tmp_path / "story")) == 2
    assert "model.safetensors" in capsys.readouterr().err


def test_the_key_frame_heeds_the_reference_by_the_scale(weights):
    def made(colour, scale):
        picture = Image.fromarray(np.random.default_rng(colour).integers(0, 255, (40, 40, 3), np.uint8))
        sampling = Sampling(**{**SAMPLING.__dict__, "scale": scale})
        (key,) = key_frames(picture, ["Red walks."], weights, sampling, torch.Generator().manual_seed(0))
        return np.asarray(key).astype(int)

    assert abs(made(1, 1.0) - made(2, 1.0)).mean() > 0.5
    assert (made(1, 0.0) == made(2, 0.0)).all()


def test_the_video_begins_at_the_key_frame(weights):
    from recipes.baselines.ip_adapter_i2v import animate

    def made(seed):
        key = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 96, 3), np.uint8))
        (shot,) = animate([key], ["Red walks."], weights, SAMPLING, torch.Generator().manual_seed(0))
        return shot.astype(int)

    assert abs(made(1) - made(2)).mean() > 0.01


def test_what_is_missing_is_one_line(weights, reference, script, tmp_path, capsys):
    for changed, says in (
        ({"sdxl": str(tmp_path)}, f"{tmp_path}: "),
        ({"adapter": str(tmp_path)}, f"{tmp_path}: "),
        ({"video": str(tmp_path)}, f"{tmp_path}: "),
    ):
        broken = Weights(**{**weights.__dict__, **changed})
        assert ip_adapter_i2v.main(command(broken, reference, script, tmp_path / "out" / next(iter(changed)))) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(error) == 1
        assert says in error[0]
    pickled = Weights(**{**weights.__dict__, "adapter_weights": "ip-adapter_sdxl.bin"})
    with pytest.raises(DataError, match="pickled weights are not loaded"):
        check_weights(pickled)
    swapped = Weights(**{**weights.__dict__, "video": weights.sdxl})
    with pytest.raises(DataError, match="a StableDiffusionXLPipeline, and a CogVideoXImageToVideoPipeline is needed"):
        check_weights(swapped)


def test_covering_keeps_the_aspect_and_crops_the_centre():
    image = Image.new("RGB", (100, 100), "white")
    image.paste((255, 0, 0), (0, 0, 100, 20))
    cut = cover(image, 40, 80)
    assert cut.size == (80, 40)
    assert cut.getpixel((40, 0)) == (255, 255, 255)
