"""What of the layouts needs no second process; the rest is in test_sharded.py."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from animeshooter_dataset import DataError
from recipes import align, multi_shot
from recipes.running import check_spread
from recipes.sharding import Fsdp2, Layout, _keep_vae_whole


class Parts(nn.Module):
    def __init__(self, trained):
        super().__init__()
        self.vae, self.transformer = nn.Linear(2, 2).requires_grad_(trained), nn.Linear(2, 2)


def module_of(gen):
    module = nn.Module()
    module.gen = gen
    return module


def test_under_zero_3_a_frozen_vae_stays_whole_and_at_hand():
    gen = Parts(trained=False)
    vae, module = gen.vae, module_of(gen)
    _keep_vae_whole(module, torch.device("cpu"))
    assert gen.vae is vae
    assert [name for name, _ in module.named_parameters()] == ["gen.transformer.weight", "gen.transformer.bias"]
    trained = module_of(Parts(trained=True))
    _keep_vae_whole(trained, torch.device("cpu"))
    assert any("vae" in name for name, _ in trained.named_parameters())


@pytest.mark.parametrize(
    ("kind", "stage", "cached", "without", "refused"),
    [
        (Fsdp2, align, ["text"], (), True),
        (Fsdp2, align, ["text"], ("text_encoder",), False),  # all of them
        (Fsdp2, align, ["vision"], (), False),  # none of them
        (Fsdp2, multi_shot, ["text"], (), False),  # not read
        (Layout, align, ["text"], (), False),
    ],
)
def test_captions_cached_in_part_are_refused_where_the_text_encoder_is_spread(kind, stage, cached, without, refused):
    layout = kind(SimpleNamespace(num_processes=2))
    features = SimpleNamespace(stores={(name, None): None for name in cached}, again="python again.py")
    coverage = SimpleNamespace(without=without)
    if not refused:
        check_spread(layout, stage.STAGE, features, coverage)
        return
    with pytest.raises(DataError, match=r"under FSDP2 .* complete the cache with: python again\.py"):
        check_spread(layout, stage.STAGE, features, coverage)
