import base64
import dataclasses
import io
import json
import subprocess
import sys
import wave
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from endpoint_server import ChatServer, asker_on, completion

from animeshooter_dataset import DataError
from curation.asking import AskConfig, Form, Question, asker_of, default_cache
from curation.ledger import AskLimits, BudgetReached, Ledger, Usage, turn
from curation.parts import Sound


def test_many_at_once_keep_one_account(tmp_path):
    ledger = Ledger(tmp_path / "usage.json", "m", AskLimits())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ledger.add(Usage(prompt_tokens=3, completion_tokens=1)), range(40)))
    assert (ledger.spent().requests, ledger.spent().prompt_tokens, ledger.spent().completion_tokens) == (40, 120, 40)


@pytest.mark.parametrize(
    "spec",
    [
        "openai:",
        "openai:http://127.0.0.1:8000/v1",
        "openai:http://127.0.0.1:8000/v1#",
        "openai:ftp://host/v1#m",
        "openai:http://#m",
        "openai:http://host:port/v1#m",
        "openai:http://[host/v1#m",
        "gemini:http://host/v1#m",
        "local:",
    ],
)
def test_addresses_that_cannot_be_used(spec):
    with pytest.raises(DataError, match="must look like openai:http://"):
        asker_of(spec)


@pytest.mark.parametrize("spec", ["openai:http://me:secret@host/v1#m", "openai:http://host/v1?key=secret#m"])
def test_an_address_with_a_key_is_refused_without_showing_it(spec):
    with pytest.raises(DataError, match="may hold no password and no key; put the key into ANIMESHOOTER_API_KEY") as caught:
        asker_of(spec)
    assert "secret" not in str(caught.value)


def test_addresses_and_settings(monkeypatch, tmp_path):
    model = asker_of("openai:https://host/v1/chat/completions/#org/name:free").model
    assert (model.kind, model.url, model.name) == ("openai", "https://host/v1", "org/name:free")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "animeshooter" / "answers"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache().is_absolute()
    with pytest.raises(DataError, match="needs prompt_price and answer_price"):
        AskLimits(budget_cost=1.0)
    for wrong in ({"frame_width": 0}, {"max_tokens": -1}, {"temperature": -1.0}):
        with pytest.raises(DataError):
            AskConfig(**wrong)
    for wrong in ({"timeout": 0}, {"concurrency": 0}, {"retries": -1}):
        with pytest.raises(DataError):
            AskLimits(**wrong)


class Told(Form):
    sound: str


def test_sound_goes_out_as_a_wav_file(tmp_path):
    tone = np.sin(np.arange(1600) * 0.1)[None].astype(np.float32) * 0.5
    with ChatServer(completion({"sound": "a tone"})) as server:
        asker = asker_on(server, tmp_path / "answers", print)
        question = Question("sound", ["What is heard?", Sound(tone, 16000)], Told)
        assert asker.ask(question).sound == "a tone"
        assert asker.ask(dataclasses.replace(question, parts=["What is heard?", Sound(tone * 0.9, 16000)])).sound == "a tone"
        assert len(server.requests) == 2
    part = server.requests[0]["messages"][0]["content"][1]["input_audio"]
    assert part["format"] == "wav"
    with wave.open(io.BytesIO(base64.b64decode(part["data"]))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (16000, 1, 1600)
        stored = np.frombuffer(file.readframes(1600), "<i2") / 32767
    assert np.abs(stored - tone[0]).max() < 1e-4


WORKER = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from curation.asking import Form, Question, asker_of
from curation.ledger import AskLimits

class Told(Form):
    sound: str

asker = asker_of("openai:{url}#tiny/model", limits=AskLimits(concurrency=1), cache=Path({cache!r}))
for number in range({first}, {first} + 3):
    asker.ask(Question("sound", ["Question " + str(number)], Told))
"""


def test_few_requests_are_under_way_at_once_over_all_processes(tmp_path):
    with ChatServer(completion({"sound": "a tone"}, hang=0.1)) as server:
        where = {"paths": sys.path, "url": server.url, "cache": str(tmp_path)}
        codes = [WORKER.format(**where, first=first) for first in (0, 3)]
        workers = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
        assert [worker.wait() for worker in workers] == [0, 0]
        assert len(server.requests) == 6
        assert server.most_at_once == 1
    account = json.loads((tmp_path / "usage.json").read_text())["models"]["tiny/model"]
    assert (account["requests"], account["prompt_tokens"]) == (6, 6000)


HOLDER = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
from curation.ledger import turn
with turn(Path({folder!r}), 1):
    print("in", flush=True)
    time.sleep(60)
"""


def test_a_process_that_is_killed_leaves_its_place(tmp_path):
    code = HOLDER.format(paths=sys.path, folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"in\n"
        waited = []

        def kill(seconds):
            waited.append(seconds)
            holder.kill()
            holder.wait()

        with turn(tmp_path, 1, kill):
            assert waited  # it was full until then


def test_a_larger_budget_goes_on_where_the_smaller_ended(tmp_path):
    first, second = (Question("sound", [f"Question {number}"], Told) for number in (1, 2))
    with ChatServer(completion({"sound": "a tone"})) as server:
        poor, rich = (asker_on(server, tmp_path, print, budget_tokens=tokens) for tokens in (1000, 2000))
        assert poor.ask(first).sound == "a tone"
        ended = "has taken 1200 of 1000 tokens in 1 requests; its answers are kept: raise the budget"
        with pytest.raises(BudgetReached, match=ended):
            poor.ask(second)
        assert poor.ask(first) == rich.ask(first)
        assert len(server.requests) == 1
        rich.ask(second)
        assert len(server.requests) == 2


def test_an_answer_that_is_blocked_is_paid_for(tmp_path):
    blocked = completion("")
    blocked.body = json.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 0}}).encode()
    with ChatServer(blocked) as server:
        asker = asker_on(server, tmp_path, print)
        with pytest.raises(DataError, match="answers without a choice"):
            asker.ask(Question("sound", ["?"], Told))
    assert json.loads((tmp_path / "usage.json").read_text())["models"]["tiny/model"]["prompt_tokens"] == 7
