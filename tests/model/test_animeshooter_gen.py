import copy

import pytest
import torch

from model import STAGES, AnimeShooterGen, blank_reference, parameter_table

CAPTIONS = [["A fox wakes.", "It looks out.", "It runs."]]


def stage_loss(gen, stage, picture, clips):
    """One teacher-forced story of three shots (alignment: its first frame) through the loss of a stage."""
    video = clips(3)
    if stage == "align":
        return (gen.first_frame_condition(video[:1, 0], ["a fox"]) - gen.text_features(["a fox"])).square().mean()
    condition = gen.text_features(CAPTIONS[0])
    if stage != "pretrain":
        condition = gen.condition([picture(0)], CAPTIONS, video[None, :-1, -1])[0]
    return gen.diffusion_loss(gen.encode_video(video), condition, torch.Generator().manual_seed(0))[0].mean()


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "pretrain_vae"])  # that one has no such loss
def test_a_step_changes_what_the_stage_trains_and_nothing_else(gen, picture, clips, stage):
    gen.set_trainable("multi_shot")
    gen.set_trainable("lora")  # both adapters are there, whatever the stage
    gen.set_trainable(stage)
    gen.train()
    before = copy.deepcopy(gen.state_dict())
    parameters = gen.trainable_parameters(stage)
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    for _ in range(2):  # a LoRA's A gets a gradient once its B has left zero
        optimizer.zero_grad()
        stage_loss(gen, stage, picture, clips).backward()
        optimizer.step()
    ids = {id(p) for p in parameters}
    expected = {name for name, p in gen.named_parameters() if id(p) in ids}
    changed = {name for name, value in gen.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == expected
    assert expected == {name for name, p in gen.named_parameters() if p.requires_grad}
    parts = {name.split(".")[0] + ("_lora" if ".lora_" in name else "") for name in expected}
    assert parts == set(STAGES[stage])


def test_every_trainable_parameter_gets_a_gradient(gen, picture, clips):
    gen.set_trainable("multi_shot")
    stage_loss(gen, "multi_shot", picture, clips).backward()
    assert [name for name, p in gen.named_parameters() if p.requires_grad and p.grad is None] == []


def test_unknown_stage_and_missing_lora_are_named(gen):
    with pytest.raises(ValueError, match="no training stage 'warmup'; choose one of"):
        gen.set_trainable("warmup")
    with pytest.raises(ValueError, match="call set_trainable first"):
        gen.trainable_parameters("lora")
    gen.set_trainable("lora", lora_rank=2)
    with pytest.raises(ValueError, match="rank 2 already, not 8"):
        gen.set_trainable("lora", lora_rank=8)


def test_parameter_table_separates_adapters(gen):
    plain = parameter_table(gen)
    gen.set_trainable("single_shot")
    table = parameter_table(gen)
    assert table["mllm"] == plain["mllm"]
    assert table["mllm_lora"][0] == table["mllm_lora"][1] > 0
    assert sum(total for total, _ in table.values()) == sum(p.numel() for p in gen.parameters())


def test_conditions_of_a_batch_are_those_of_its_stories(gen, picture, clips):
    video = clips(4)
    captions = [["a fox", "b"], ["c " * 15, "d"]]
    batch = gen.condition([picture(0), [picture(1), picture(2)]], captions, [[video[0, -1]], [video[1, -1]]])
    assert batch.shape == (2, 2, 24, 64)
    alone = gen.condition([[picture(1), picture(2)]], captions[1:], video[None, 1:2, -1])
    assert torch.allclose(batch[1], alone[0], atol=1e-5)


def test_no_reference_is_the_blank_one(gen, picture):
    missing, blank, some = (gen.condition([ref], [[""]]) for ref in (None, blank_reference(), picture(0)))
    assert torch.equal(missing, blank)
    assert not torch.allclose(missing, some, atol=1e-4)


def test_first_frame_condition_is_a_story_of_one_shot(gen, clips):
    frames = clips(2)[:, 0]
    single = gen.first_frame_condition(frames, ["a", "b"])
    assert single.shape == gen.text_features(["a", "b"]).shape == (2, 24, 64)
    assert torch.equal(single, gen.condition(list(frames), [["a"], ["b"]])[:, 0])


def test_conditions_need_one_of_everything_a_story(gen, picture, clips):
    with pytest.raises(ValueError, match="2 references, captions of 1 stories"):
        gen.condition([None, None], [["a"]])
    with pytest.raises(ValueError, match=r"3 captions needs 2 last frames .* not 0"):
        gen.condition([None], CAPTIONS)


def test_conditions_keep_no_graph_when_nothing_they_use_is_trained(gen, picture):
    gen.set_trainable("lora")
    assert not gen.condition([None], [["a"]]).requires_grad
    gen.set_trainable("align")
    assert gen.condition([None], [["a"]]).requires_grad


def test_text_features_are_cut_to_the_length_of_the_condition(gen):
    assert gen.text_features(["word " * 300, ""]).shape == (2, 24, 64)


def test_an_even_number_of_latent_frames_decodes_too(gen, clips):
    assert gen.decode_latents(gen.encode_video(clips(2))[:, :2]).shape == (2, 5, 64, 96, 3)


def test_loss_is_that_of_diffusers_cogvideox_training(gen, clips):
    latents, condition = gen.encode_video(clips(3)), gen.text_features(["a", "b", "c"])
    loss, timesteps = gen.diffusion_loss(latents, condition, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    assert torch.equal(torch.randint(0, 1000, (3,), generator=generator), timesteps)
    noise = torch.randn(latents.shape, generator=generator)
    noisy = gen.scheduler.add_noise(latents, noise, timesteps)
    output = gen.transformer(noisy, condition, timesteps).sample
    denoised = gen.scheduler.get_velocity(output, noisy, timesteps)  # x0 of a v-prediction
    weights = 1 / (1 - gen.scheduler.alphas_cumprod[timesteps].float())
    expected = (weights.view(-1, 1, 1, 1, 1) * (denoised - latents) ** 2).flatten(1).mean(1)
    assert torch.allclose(loss, expected, rtol=1e-3)


def test_schedule_ends_in_pure_noise(gen):
    assert gen.scheduler.config.prediction_type == "v_prediction"
    assert gen.scheduler.alphas_cumprod[-1].abs() < 1e-6


def test_gradient_checkpointing_gives_the_same_gradients(gen, picture, clips):
    gradients = []
    for checkpointing in (False, True):
        model = AnimeShooterGen.from_preset("tiny", seed=0)
        model.set_trainable("multi_shot")
        model.train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        stage_loss(model, "multi_shot", picture, clips).backward()
        gradients.append(model.adapter.queries.weight.grad)
    assert torch.allclose(*gradients, atol=1e-6)


def test_a_few_steps_of_alignment_lower_its_loss(gen, clips):
    gen.set_trainable("align")
    frames, texts = clips(2)[:, 0], ["a fox", "the sea at night"]
    target = gen.text_features(texts)
    optimizer = torch.optim.AdamW(gen.trainable_parameters("align"), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = (gen.first_frame_condition(frames, texts) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
