import json

import pytest
import torch
from tiny_models import tiny_model

from model import AnimeShooterGen, AnimeShooterPipeline, parameter_table
from model.context import EMPTY, Context, history, joined, reference
from model.denoise import denoise
from model.images import letterboxed
from model.lora import CONTEXT, lora_parameters


def seed(number):
    return torch.Generator().manual_seed(number)


@pytest.fixture(params=["tiny", "rotary", "tiny_wan"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def story(picture):
    """story(model): a context of one reference picture and two earlier frames."""

    def make_context(model):
        latents = model.encode_pictures([picture(k) for k in range(3)], 64, 96)
        return Context(latents[None], torch.tensor([[reference(0), history(1), history(0)]]))

    return make_context


def shake(model):
    """Roles and adapter of the pathway as training would leave them: not zero."""
    generator = seed(3)
    for _, parameter in lora_parameters(model.transformer, CONTEXT):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    model.context.roles.weight.data = torch.randn(model.context.roles.weight.shape, generator=generator)


def predict(model, context=None, batch=1):
    noisy = torch.randn(batch, 3, 4, 8, 12, generator=seed(0))
    condition = torch.randn(batch, model.backbone.condition_length, 64, generator=seed(1))
    with torch.no_grad():
        return model.backbone.predict(noisy, condition, torch.full((batch,), 500), context)


def test_without_a_context_the_pathway_changes_no_bit(model):
    before = predict(model)
    model.add_context()
    assert torch.equal(predict(model), before)


def test_a_model_without_the_pathway_writes_the_files_it_always_wrote(gen, tmp_path):
    gen.save_pretrained(tmp_path / "ck")
    assert "context" not in json.loads((tmp_path / "ck" / "model_index.json").read_text())
    assert not [path for path in (tmp_path / "ck").iterdir() if "context" in path.name]
    assert AnimeShooterGen.from_pretrained(tmp_path / "ck").context is None
    assert set(parameter_table(gen)) == {"mllm", "adapter", "text_encoder", "transformer", "vae"}


def test_a_context_needs_the_pathway_and_fitting_shapes(gen, story):
    with pytest.raises(ValueError, match="no second pathway"):
        predict(gen, story(gen))
    with pytest.raises(ValueError, match=r"roles \[B, K\], not \[1, 3, 4, 8, 12\] and \[1, 2\]"):
        Context(torch.zeros(1, 3, 4, 8, 12), torch.zeros(1, 2, dtype=torch.long))
    gen.add_context()
    with pytest.raises(ValueError, match="has the second pathway already"):
        gen.add_context()
    with pytest.raises(ValueError, match="there is no number 8"):
        reference(8)
    with pytest.raises(ValueError, match="there is no number 16"):
        history(16)


def test_a_context_is_read_and_its_own_frames_are_not_predicted(model, story):
    model.add_context()
    context, plain = story(model), predict(model)
    seen = predict(model, context)
    assert seen.shape == plain.shape
    assert not torch.allclose(seen, plain, atol=1e-4)
    other = Context(context.latents.flip(1), context.roles)
    assert not torch.allclose(predict(model, other), seen, atol=1e-4)
    assert torch.allclose(predict(model, context, batch=2)[:1], seen, atol=1e-5)


def test_roles_tell_frames_apart_once_they_are_trained(model, story):
    model.add_context()
    context = story(model)
    renamed = Context(context.latents, torch.tensor([[reference(1), history(1), history(0)]]))
    assert torch.equal(predict(model, renamed), predict(model, context))  # all roles are zero yet
    shake(model)
    assert not torch.allclose(predict(model, renamed), predict(model, context), atol=1e-4)


def test_the_clip_keeps_the_positions_the_transformer_was_trained_on(model, story):
    model.add_context()
    inputs = []

    def spy(_module, args, kwargs):
        names = ("hidden_states", "encoder_hidden_states", "temb", "rotary_emb")  # Wan's come by place
        given = dict(zip(names, args)) | kwargs
        inputs.append((given["hidden_states"], given.get("image_rotary_emb")))

    model.backbone.blocks[0].register_forward_pre_hook(spy, with_kwargs=True)
    predict(model)
    predict(model, story(model))
    (alone, turns), (behind, moved) = inputs
    cells = 4 * 6
    assert behind.shape[1] == alone.shape[1] + 3 * cells
    assert torch.allclose(behind[:, 3 * cells :], alone, atol=1e-5)
    if turns is not None:
        assert all(torch.allclose(new[3 * cells :], old, atol=1e-5) for new, old in zip(moved, turns, strict=True))
        assert not torch.allclose(moved[0][:cells], turns[0][:cells], atol=1e-3)  # the context stands elsewhere in time
        assert torch.allclose(moved[0][:cells, 4:], turns[0][:cells, 4:], atol=1e-5)  # but in the same places of the frame


def test_contexts_of_several_shots_are_filled_up_with_empty_frames(gen, story):
    gen.add_context()
    whole = story(gen)
    short = Context(whole.latents[:, :1], whole.roles[:, :1])
    both = joined([short, whole])
    assert both.latents.shape == (2, 3, 4, 8, 12)
    assert both.roles.tolist() == [[EMPTY, EMPTY, reference(0)], whole.roles[0].tolist()]
    assert not both.latents[0, :2].any()
    assert torch.allclose(predict(gen, both, batch=2)[1:], predict(gen, whole, batch=2)[1:], atol=1e-5)


@pytest.mark.parametrize("stage", ["single_shot", "multi_shot", "lora", "align"])
def test_the_pathway_trains_with_the_stages_that_read_references(gen, story, stage):
    gen.set_trainable("lora")
    gen.add_context()
    gen.set_trainable(stage)
    with_pathway = stage in ("single_shot", "multi_shot")
    table = parameter_table(gen)
    assert {name for name, (_, trained) in table.items() if trained} == set(gen.trained_parts(stage))
    assert ({"context", "context_lora"} <= set(gen.trained_parts(stage))) is with_pathway
    assert table["context_lora"][0] > 0
    if with_pathway:
        latents, condition = torch.zeros(1, 3, 4, 8, 12), gen.text_features(["a"])
        gen.diffusion_loss(latents, condition, seed(0), context=story(gen))[0].sum().backward()
        used = gen.context.roles.weight.grad.abs().sum(1).nonzero().flatten().tolist()
        assert used == sorted([reference(0), history(1), history(0)])


def test_only_the_adapter_of_its_stage_changes(gen, story):
    gen.add_context()
    gen.set_trainable("lora")
    before = {name: value.clone() for name, value in gen.state_dict().items()}
    gen.set_trainable("multi_shot")
    optimizer = torch.optim.SGD(gen.trainable_parameters("multi_shot"), lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        gen.diffusion_loss(torch.ones(1, 3, 4, 8, 12), gen.text_features(["a"]), seed(0), context=story(gen))[
            0
        ].sum().backward()
        optimizer.step()
    changed = {name for name, value in gen.state_dict().items() if name in before and not torch.equal(value, before[name])}
    assert {name for name in changed if name.startswith("transformer.")} == {
        f"transformer.{name}" for name, _ in lora_parameters(gen.transformer, CONTEXT)
    }
    assert "context.roles.weight" in changed


def test_a_checkpoint_keeps_the_pathway_beside_the_last_stages_adapter(model, story, shake_lora, tmp_path):
    model.add_context(rank=3)
    model.set_trainable("lora")
    shake_lora(model.transformer)
    shake(model)
    model.save_pretrained(tmp_path / "ck")
    assert {"context", "context_lora", "transformer_lora"} <= {path.name for path in (tmp_path / "ck").iterdir()}
    loaded = AnimeShooterGen.from_pretrained(tmp_path / "ck")
    assert torch.equal(predict(loaded, story(model)), predict(model, story(model)))
    assert loaded.transformer.peft_config[CONTEXT].r == 3
    assert not any(p.requires_grad for p in loaded.parameters())
    half = AnimeShooterGen.from_pretrained(tmp_path / "ck", dtype=torch.bfloat16)
    assert half.context.roles.weight.dtype == torch.float32
    again = AnimeShooterPipeline.from_pretrained(tmp_path / "ck")
    assert torch.equal(again.context.roles.weight, model.context.roles.weight)


def test_every_condition_may_have_a_context_of_its_own(gen, story):
    gen.add_context()
    shake(gen)
    condition, whole = gen.text_features(["", "a fox"]), story(gen)
    empty = Context(torch.zeros_like(whole.latents), torch.full_like(whole.roles, EMPTY))
    start = {"shape": (3, 4, 8, 12), "steps": 2, "noise": torch.randn(1, 3, 4, 8, 12, generator=seed(0))}
    same = denoise(gen.backbone, condition, [-1.0, 2.0], context=whole, **start)
    assert torch.allclose(
        same, denoise(gen.backbone, condition, [-1.0, 2.0], context=joined([whole, whole]), **start), atol=1e-4
    )
    guided = denoise(gen.backbone, condition, [-1.0, 2.0], context=joined([empty, whole]), **start)
    assert not torch.allclose(same, guided, atol=1e-3)


def test_pictures_are_fitted_whole_into_the_frame(gen, picture):
    tall = picture(0, height=100, width=50)
    sheet = letterboxed(tall, 64, 96)
    assert sheet.shape == (64, 96, 3)
    assert (sheet[:, :32] == 255).all()
    assert (sheet[:, 64:] == 255).all()
    assert (sheet[:, 32:64] != 255).any()
    exact = letterboxed(picture(1, height=64, width=96), 64, 96)
    latents = gen.encode_pictures([tall, picture(1)], 64, 96)
    assert latents.shape == (2, 4, 8, 12)
    assert torch.allclose(latents[1], gen.encode_video(exact[None, None])[0, 0], atol=1e-5)
    with pytest.raises(ValueError, match="no pictures"):
        gen.encode_pictures([], 64, 96)


def test_what_a_picture_shows_reaches_the_clip(gen):
    """Clips of one flat colour that nothing but the picture tells: a few steps of training make its colour count."""
    gen.add_context()
    gen.set_trainable("pretrain")
    generator, condition = seed(0), gen.text_features([""])

    def error(shift):
        colours = torch.randn(8, 1, 4, 1, 1, generator=generator)
        pictures = Context(colours.roll(shift, 0).expand(8, 1, 4, 8, 12), torch.full((8, 1), reference(0)))
        latents = colours.expand(8, 3, 4, 8, 12).contiguous()
        timesteps = torch.full((8,), 950)
        return gen.diffusion_loss(latents, condition.expand(8, -1, -1), generator, context=pictures, timesteps=timesteps)[
            0
        ].mean()

    optimizer = torch.optim.AdamW(gen.trainable_parameters("pretrain"), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        error(0).backward()
        optimizer.step()
    with torch.no_grad():
        right, wrong = (torch.stack([error(shift) for _ in range(4)]).mean() for shift in (0, 1))
    assert right < 0.5 * wrong
