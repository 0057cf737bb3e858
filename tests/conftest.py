import shutil

import pytest


@pytest.fixture(scope="session")
def walkers(tmp_path_factory):
    """A dataset directory built once for all tests that only read it; those that change it take a copy."""
    import built

    return built.build_walkers(tmp_path_factory.mktemp("walkers"))


@pytest.fixture
def copy(walkers, tmp_path):
    """A copy of the dataset to change."""
    shutil.copytree(walkers, tmp_path / "animeshooter")
    return tmp_path / "animeshooter"
