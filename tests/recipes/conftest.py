import pytest
import torch
from tiny_dataset import write_dataset

from recipes import align, lora, multi_shot, single_shot
from recipes.trainer import main


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("recipes") / "animeshooter"
    write_dataset(directory, videos=2, shots=4)
    return directory


@pytest.fixture(scope="session")
def chain(dataset, tmp_path_factory):
    """The four stages of the tiny preset, two steps each, one from the other: stage → checkpoint."""
    torch.set_num_threads(1)  # the model is tiny: more threads only wait for one another
    folder = tmp_path_factory.mktemp("checkpoints")
    parent = []
    for stage, more in ((align, []), (single_shot, []), (multi_shot, []), (lora, ["--set", "data.video=film1"])):
        out = folder / stage.STAGE.name
        arguments = ["--data", str(dataset), "--out", str(out), "--set", "train.steps=2", *more, *parent]
        assert main(stage.STAGE, arguments) == 0
        parent = ["--from", str(out)]
    return {path.name: path for path in folder.iterdir()}
