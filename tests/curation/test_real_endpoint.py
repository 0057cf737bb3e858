"""The endpoint against a real server: ``transformers serve`` on the loopback, with tiny real models."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
import requests
import torch
from endpoint_server import VIEW, script
from tiny_vlm import build_llava, learn_by_heart

from animeshooter_dataset import DataError
from curation.asking import AskConfig, asker_of
from curation.judge import AskedJudge
from curation.ledger import AskLimits
from curation.screenwriter import Screenwriter
from curation.script import NoAnswer

for needed in ("fastapi", "openai", "uvicorn"):
    pytest.importorskip(needed, reason="transformers serve needs it")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url, process, log, patience=120):
    until = time.monotonic() + patience
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        try:
            if requests.get(f"{url}/health", timeout=1).ok:
                return
        except requests.RequestException:
            time.sleep(0.1)
    raise AssertionError(f"the server does not come up:\n{log.read_text()}")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A folder with two models, and the address of a server for both."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("served")
    build_llava(home / "random")
    model, tokenizer = build_llava(home / "heart")
    verdicts = {"reason": "Drawn.", "animation": True, "subtitles": False}
    learn_by_heart(model, tokenizer, json.dumps(script() | verdicts), home / "heart")
    torch.set_num_threads(threads)
    port, log = free_port(), home / "log"
    code = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", code, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, env=quiet, cwd=home) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}", process, log)
            yield home, f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


@pytest.fixture
def asker(server, tmp_path):
    home, url = server

    def make(name, **settings):
        limits = AskLimits(timeout=60, retries=0)
        return asker_of(f"openai:{url}#{home / name}", AskConfig(**settings), limits, cache=tmp_path / "answers")

    make.cache = tmp_path / "answers"
    return make


def account(asker):
    return next(iter(json.loads((asker.cache / "usage.json").read_text())["models"].values()))


def test_a_real_server_writes_a_script_once(asker, server):
    model = str(server[0] / "heart")
    told = [Screenwriter(asker("heart", max_tokens=2000)).annotate(VIEW) for _ in range(2)]
    assert [shot.narrative_caption for shot in told[0].shots] == [shot["narrative_caption"] for shot in script()["shots"]]
    assert (told[0].annotator.kind, told[0].annotator.model) == ("openai", model)
    assert told[0] == told[1]
    used = account(asker)
    assert (used["requests"], used["unreported"]) == (1, 0)
    assert used["prompt_tokens"] > 1000
    assert used["completion_tokens"] > 50


def test_a_real_server_judges(asker):
    frames = [sample.image for samples in VIEW.samples for sample in samples]
    verdict = AskedJudge(asker("heart", max_tokens=2000)).film(frames[:16])
    assert (verdict.animation, verdict.subtitles) == (True, False)


def test_rubbish_of_a_real_model_is_a_recorded_failure(asker):
    with pytest.raises(DataError, match="gave no usable script, the answer is cut off at 40 tokens") as caught:
        Screenwriter(asker("random", max_tokens=40)).annotate(VIEW)
    assert not isinstance(caught.value, NoAnswer)
    used = account(asker)
    assert used["requests"] == 2
    assert used["completion_tokens"] == 80
    assert not list(asker.cache.glob("*/*.json"))


def test_a_model_that_is_not_served_is_told(asker):
    with pytest.raises(NoAnswer, match=r"answers with status [45]"):
        Screenwriter(asker("no-such-model", max_tokens=40)).annotate(VIEW)
