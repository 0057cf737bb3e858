import base64
import dataclasses
import io
import json
import logging

import pytest
from endpoint_server import CAST, VIEW, ChatServer, Reply, asker_on, changed, completion, http_date, refusal, script
from PIL import Image

from animeshooter_dataset import AnnotatedBy, DataError
from curation.answers import ScriptForm
from curation.asking import AskConfig, plain_schema
from curation.screenwriter import Screenwriter, choose_frames
from curation.script import NoAnswer

KEY = "sk-a/secret-that-nobody-may-see"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("ANIMESHOOTER_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def ask(tmp_path):
    """Asks a server about the story; waits between retries are noted in ``ask.waits`` and not waited."""

    def asking(server, view=VIEW, **settings):
        asker = asker_on(server, tmp_path / "answers", waits.append, **settings)
        return Screenwriter(asker, settings.get("language", "English")).annotate(view)

    waits = asking.waits = []
    asking.cache = tmp_path / "answers"
    return asking


def fails(ask, server, *, story=False, **settings):
    """The one line of the error; ``story`` says that it lies with the story and not with the endpoint."""
    with pytest.raises(DataError) as caught:
        ask(server, **settings)
    line = str(caught.value)
    assert isinstance(caught.value, NoAnswer) != story
    assert line.startswith("cartoon.mp4: story 0.0 s to 14.0 s: ")
    assert "\n" not in line
    assert KEY not in line
    return line


def test_a_story_gets_its_script_in_one_request(ask):
    with ChatServer(completion(script())) as server:
        told = ask(server)
    assert told.annotator == AnnotatedBy(kind="openai", model="tiny/model")
    assert told.storyline == "A hen and a bird find each other."
    assert [c.id for c in told.characters] == ["hen", "bird"]
    assert [s.id for s in told.scenes] == ["meadow", "dusk"]
    assert [list(shot.characters) for shot in told.shots] == CAST
    assert [shot.scene for shot in told.shots] == ["meadow", "dusk", "meadow", "dusk", None]
    assert told.shots[1].narrative_caption == "The search takes step 2."
    assert told.shots[1].annotated == (3, 6)
    assert told.shots[4].prologue_or_epilogue == "epilogue"
    assert len(server.requests) == 1
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_the_question_holds_shots_frames_and_schema(ask):
    with ChatServer(completion(script())) as server:
        ask(server, language="English", frame_width=100)
    request = server.requests[0]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("tiny/model", 0, 8192)
    assert request["response_format"]["json_schema"]["schema"] == plain_schema(ScriptForm)
    assert "Shot 3: 6.00 s to 9.00 s (3.00 s long)" in server.texts[0]
    assert "$" not in server.texts[0]
    parts = request["messages"][0]["content"]
    pictures = [i for i, part in enumerate(parts) if part["type"] == "image_url"]
    assert len(pictures) == sum(min(3, len(samples)) for samples in VIEW.samples)
    labels = [parts[i - 1]["text"] for i in pictures]
    assert labels[0] == "Shot 1 at 0.50 s:"
    assert [sum(f"Shot {n} " in label for label in labels) for n in range(1, 6)] == [3, 3, 3, 3, 3]
    head, _, data = parts[pictures[0]]["image_url"]["url"].partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/jpeg;base64"
    assert picture.size == (100, 56)
    assert VIEW.film.name not in json.dumps(request)


def test_frames_go_to_the_longest_shots_first():
    view = dataclasses.replace(VIEW, times=[0, 1, 9, 10, 11, 12])
    config = AskConfig(frames_per_shot=3, max_frames=7)
    assert [len(frames) for frames in choose_frames(view, config)] == [1, 3, 1, 1, 1]
    with pytest.raises(DataError, match="5 shots are more than the 4 frames"):
        choose_frames(view, dataclasses.replace(config, max_frames=4))


@pytest.mark.parametrize("wrap", ["Here you are:\n```json\n{}\n```\nEnjoy!", "<think>{{ maybe }}</think>{}", "Sure: {} Done."])
def test_json_is_found_among_other_words(ask, wrap):
    with ChatServer(completion(wrap.replace("{}", json.dumps(script())), chunked=True)) as server:
        assert len(ask(server).shots) == 5
    assert len(server.requests) == 1


def test_a_second_run_sends_nothing(ask):
    with ChatServer(completion(script())) as server:
        first = ask(server)
        assert ask(server) == first
        assert len(server.requests) == 1
    assert ask(server, prompt_price=1.0, answer_price=2.0) == first  # the server is gone, and the price decides nothing


@pytest.mark.parametrize("other", [{"language": "German"}, {"frames_per_shot": 1}, {"temperature": 0.5}, {"view": None}])
def test_another_question_is_asked_anew(ask, other):
    if "view" in other:
        other = {"view": dataclasses.replace(VIEW, times=[*VIEW.times[:-1], 14.5])}
    with ChatServer(completion(script())) as server:
        ask(server)
        ask(server, **other)
        assert len(server.requests) == 2


@pytest.mark.parametrize("damage", [b"", b'{"half": ', b"\xff\xfe", None])
def test_a_damaged_cache_file_is_ignored_and_replaced(ask, damage):
    with ChatServer(completion(script())) as server:
        first = ask(server)
        [path] = ask.cache.glob("*/*.json")
        whole = path.read_bytes()
        kept = json.loads(whole)
        kept["answer"]["shots"].pop()  # readable, but no answer to this question
        path.write_bytes(json.dumps(kept).encode() if damage is None else damage)
        assert ask(server) == first
        assert path.read_bytes() == whole
        assert len(server.requests) == 2
    assert [p.name for p in ask.cache.rglob(".*")] == []


WRONG = [
    ({"characters": ["hen", "dragon"]}, "shot 3: character 'dragon' is not among the characters"),
    ({"scene": "moon"}, "shot 3: scene 'moon' is not among the scenes"),
    ({"start_time": 6, "end_time": 99}, "shot 3: 6 s to 99 s lies outside the story"),
    ({"start_time": 12, "end_time": 14}, "shot 3: 12 s to 14 s is not where this shot is"),
    ({"start_time": 8, "end_time": 6}, "shot 3: 8 s to 6 s ends before it starts"),
    ({"start_time": float("nan")}, "shots[2].start_time: Input should be a finite number"),
    ({"start_time": "00:06"}, "shots[2].start_time: Input should be a valid number"),
    ({"narrative_caption": " … "}, "shot 3: narrative_caption is empty"),
    ({"narrative_caption": "the search takes STEP 2"}, "shot 3: narrative_caption is the same as that of shot 2"),
    ({"descriptive_caption": "赤い鶏が丘の上に立っている"}, "shot 3: descriptive_caption is not written in English"),
    ({"descriptive_caption": "very " * 1000}, "shot 3: descriptive_caption has 4999 characters"),
    ({"descriptive_caption": "half \ud83d"}, "shots[2].descriptive_caption: Input should be a valid string"),
    ({"shot": 2}, "shot 3 is missing"),
    ({"shot": 9}, "shot 9 is not in the list"),
    ({"prologue_or_epilogue": "middle"}, "shots[2].prologue_or_epilogue"),
]


@pytest.mark.parametrize(("fields", "problem"), WRONG)
def test_what_is_wrong_goes_back_once_and_may_be_mended(ask, fields, problem):
    with ChatServer(completion(changed(**fields)), completion(script())) as server:
        assert len(ask(server).shots) == 5
    assert len(server.requests) == 2
    question, before, told = server.requests[1]["messages"]
    assert question == server.requests[0]["messages"][0]
    assert before == {"role": "assistant", "content": json.dumps(changed(**fields))}
    assert problem in told["content"]


@pytest.mark.parametrize(("fields", "problem"), WRONG[:3])
def test_what_stays_wrong_is_one_clear_line(ask, fields, problem):
    with ChatServer(completion(changed(**fields))) as server:
        line = fails(ask, server, story=True)
        assert len(server.requests) == 2
    assert line.startswith("cartoon.mp4: story 0.0 s to 14.0 s: tiny/model gave no usable script, " + problem)
    assert not list(ask.cache.glob("*/*.json"))


def test_too_few_shots_then_right(ask):
    short = script()
    del short["shots"][3:]
    with ChatServer(completion(short), completion(script())) as server:
        assert len(ask(server).shots) == 5
    assert "the story has 5 shots, numbered from 1; shot 4, 5 are missing" in server.texts[1]


@pytest.mark.parametrize("half", [json.dumps(script())[:700], "I cannot do that.", "", None])
def test_an_answer_without_a_whole_script_goes_back(ask, half):
    with ChatServer(completion(half), completion(script())) as server:
        assert len(ask(server).shots) == 5
        assert len(server.requests) == 2


def test_an_answer_that_is_cut_off_may_be_mended_once(ask):
    cut = completion(json.dumps(script())[:700], finish="length")
    with ChatServer(cut, completion(script())) as server:
        assert len(ask(server).shots) == 5
        assert "cut off at 8192 tokens" in server.texts[1]
    with ChatServer(cut) as server:
        line = fails(ask, server, story=True, max_tokens=64)
        assert len(server.requests) == 2
    assert line.endswith("the answer is cut off at 64 tokens; write shorter texts; raise max_tokens")


def test_only_characters_that_come_back_are_kept_and_the_drop_is_told(ask, caplog):
    answer = changed(characters=["hen", "bird", "passer-by"])
    answer["characters"].append({"id": "passer-by", "appearance": "a grey goose"})
    with ChatServer(completion(answer)) as server, caplog.at_level(logging.WARNING):
        told = ask(server)
    assert [c.id for c in told.characters] == ["hen", "bird"]
    assert told.shots[2].characters == ("hen", "bird")
    assert "cartoon.mp4: in one shot only, so no main character: passer-by" in caplog.text


def test_too_many_or_no_main_characters_go_back(ask):
    crowd = script()
    for name in "abcd":
        crowd["characters"].append({"id": name, "appearance": "grey"})
        for shot in crowd["shots"][:2]:
            shot["characters"] = [*shot["characters"], name]
    alone = script()
    for shot in alone["shots"]:
        shot["characters"] = []
    with ChatServer(completion(crowd), completion(alone)) as server:
        line = fails(ask, server, story=True)
    assert "characters: 6 of them; name the 3 that matter most" in server.texts[1]
    assert "none of them is in at least two shots" in line


def test_representative_windows_lie_in_longer_shots_only(ask):
    view = dataclasses.replace(VIEW, times=[0, 3, 9, 12, 15, 17])
    answer = script()
    for shot, (start, end) in zip(answer["shots"], zip(view.times, view.times[1:])):
        shot |= {"start_time": start, "end_time": end, "representative_start_time": start}
    answer["shots"][1]["representative_start_time"] = 5.1
    with ChatServer(completion(answer)) as server:
        told = ask(server, view)
        assert [shot.representative for shot in told.shots] == [None, (5.0, 9.0), None, None, None]
        answer["shots"][1]["representative_start_time"] = 7
        server.replies = [completion(answer)]
        with pytest.raises(DataError, match=r"shot 2: representative_start_time 7 s: .* choose 3.00 s to 5.00 s"):
            ask(server, view, temperature=1.0)


def test_ways_of_saying_null_are_understood(ask):
    with ChatServer(completion(changed(scene="N/A", prologue_or_epilogue="none", start_time="null", extra=1))) as server:
        told = ask(server)
    assert (told.shots[2].scene, told.shots[2].prologue_or_epilogue, told.shots[2].annotated) == (None, None, None)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_busy_server_is_asked_again_with_growing_waits(ask, status):
    with ChatServer(refusal(status), refusal(status), completion(script())) as server:
        assert len(ask(server).shots) == 5
        assert len(server.requests) == 3
    assert 0.5 <= ask.waits[0] <= 1
    assert 1 <= ask.waits[1] <= 2


def test_retries_are_bounded_and_their_waits_are_the_same_each_time(ask):
    with ChatServer(refusal(500, "out of memory")) as server:
        line = fails(ask, server)
        assert len(server.requests) == 3
        waits = ask.waits.copy()
        fails(ask, server)
    assert ask.waits[2:] == waits
    assert "status 500 after 3 attempts: out of memory" in line


@pytest.mark.parametrize("asked", [lambda: 50, lambda: http_date(55)], ids=["seconds", "date"])
def test_retry_after_is_honoured_as_seconds_and_as_a_date(ask, asked):
    with ChatServer(refusal(429, retry_after=asked()), completion(script())) as server:
        ask(server)
    assert 30 < ask.waits[0] < 57


def test_a_wait_longer_than_allowed_is_given_up(ask):
    with ChatServer(refusal(429, retry_after=3600)) as server:
        assert "asks to wait 3600 s (status 429); run again later" in fails(ask, server)
        assert len(server.requests) == 1
    assert ask.waits == []


@pytest.mark.parametrize(
    ("status", "mend"),
    [
        (400, "the model must take images"),
        (401, "put a valid key into"),
        (403, "valid key"),
        (404, "'tiny/model'"),
        (302, "redirect"),
    ],
)
def test_other_refusals_are_not_tried_again(ask, status, mend):
    with ChatServer(refusal(status, "no, for a reason")) as server:
        line = fails(ask, server)
        assert len(server.requests) == 1
    assert f"status {status}" in line
    assert "no, for a reason" in line
    assert mend in line


def test_a_redirect_does_not_take_the_key_elsewhere(ask):
    with ChatServer(completion(script())) as other:
        with ChatServer(refusal(307, location=f"{other.url}/chat/completions")) as server:
            assert "status 307, a redirect" in fails(ask, server)
        assert other.requests == []


def test_a_server_that_hangs_is_given_up(ask):
    with ChatServer(completion(script(), hang=30)) as server:
        line = fails(ask, server, timeout=0.2)
        assert len(server.requests) == 3
    assert "gave no whole reply within 0.2 s, after 3 attempts" in line


@pytest.mark.parametrize("how", [{"drip": 0.05}, {"drip_head": 0.05}])
def test_a_reply_in_drips_is_given_up(ask, how):
    with ChatServer(completion(script(), **how)) as server:
        line = fails(ask, server, timeout=0.3, retries=0)
    assert "gave no whole reply within 0.3 s" in line


def test_a_connection_that_breaks_is_tried_again(ask):
    body = completion(script()).body
    with ChatServer(Reply(body[:300], length=len(body)), completion(script())) as server:
        assert len(ask(server).shots) == 5
        assert len(server.requests) == 2
    assert "cannot be reached, or broke off" in fails(ask, server, language="French")  # now it is gone


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"<!doctype html><p>Hello</p>", "answers with a web page, not with JSON"),
        (completion(script()).body[:400], "answers with broken JSON"),
        (b"", "answers with broken JSON (nothing)"),
        (b"[]", "not as a chat completion"),
        (b'{"choices": []}', "answers without a choice"),
        (b'{"error": {"message": "model overloaded"}}', "answers with an error: model overloaded"),
        (b'{"choices": [{"message": {"content": 5}}]}', "not as a chat completion (choices.0.message.content"),
        (b" " * (8 * 2**20 + 1), "sends more than 8388608 bytes"),
    ],
)
def test_replies_that_are_no_completion_are_told_clearly(ask, body, problem):
    with ChatServer(Reply(body)) as server:
        assert problem in fails(ask, server, story="without a choice" in problem)
        assert len(server.requests) == 1


def test_a_server_without_schemas_is_asked_without(ask):
    with ChatServer(refusal(400, "Unknown field: response_format"), completion(script())) as server:
        assert len(ask(server).shots) == 5
        assert len(ask(server, frames_per_shot=1).shots) == 5
    assert ["response_format" in request for request in server.requests] == [True, False, False]


def test_a_server_with_other_ways_is_asked_in_those(ask):
    length = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    heat = "Unsupported value: 'temperature' does not support 0 with this model."
    with ChatServer(refusal(400, length), refusal(400, heat), completion(script())) as server:
        assert len(ask(server).shots) == 5
    last = server.requests[-1]
    assert len(server.requests) == 3
    assert last["max_completion_tokens"] == 8192
    assert not {"max_tokens", "temperature"} & set(last)
    assert "response_format" in last


@pytest.mark.parametrize("echo", [KEY, KEY.replace("/", "\\/")])
def test_the_key_is_in_nothing_that_is_kept_or_told(ask, echo, caplog):
    told = script() | {"storyline": f"The header was Bearer {KEY} and so on."}
    lines = []
    body = completion(told).body.replace(KEY.encode(), echo.encode())
    wrong = json.dumps({"error": {"message": "bad key " + "x" * 170 + KEY}}).replace(KEY, echo)
    with caplog.at_level(logging.DEBUG), ChatServer(Reply(body)) as server:
        result = ask(server)
        for n, status in enumerate((401, 500, 200)):
            server.replies = [Reply(wrong.encode(), status)]
            lines.append(fails(ask, server, temperature=n + 1.0))
        server.replies = [completion(f"{KEY} is all I say")]
        lines.append(fails(ask, server, story=True, temperature=9.0))
    assert "[key]" in result.storyline
    kept = [path.read_text() for path in ask.cache.rglob("*") if path.is_file()]
    assert len(kept) >= 2
    for text in [*kept, *lines, caplog.text, repr(result), *server.texts[1:]]:
        assert KEY not in text
        assert KEY[:20] not in text


def test_without_a_key_none_is_sent_and_a_broken_one_is_not_shown(ask, monkeypatch):
    monkeypatch.delenv("ANIMESHOOTER_API_KEY")
    with ChatServer(completion(script())) as server:
        ask(server)
        assert "Authorization" not in server.headers[0]
        monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
        line = fails(ask, server, temperature=1.0)
        assert "OPENAI_API_KEY holds white space" in line
        assert "lines" not in line
        assert len(server.requests) == 1


def test_tokens_and_cost_are_summed_beside_the_answers(ask):
    prices = {"prompt_price": 0.5, "answer_price": 2.0}
    thinking = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 130}
    with ChatServer(completion(changed(scene="moon")), completion(script()), completion(script(), usage=thinking)) as server:
        ask(server, **prices)
        ask(server, **prices)
        ask(server, temperature=1.0, **prices)
    account = json.loads((ask.cache / "usage.json").read_text())["models"]["tiny/model"]
    assert account["requests"] == 3
    assert account["prompt_tokens"] == 2010
    assert account["completion_tokens"] == 520  # reasoning is part of the total only
    assert account["cost"] == pytest.approx((2010 * 0.5 + 520 * 2) / 1e6)


@pytest.mark.parametrize("budget", [{"budget_tokens": 2000}, {"budget_cost": 0.001, "prompt_price": 0.5, "answer_price": 1.0}])
def test_a_budget_that_is_reached_stops_before_sending(ask, budget):
    with ChatServer(completion(script())) as server:
        first = ask(server, **budget)
        ask(server, temperature=1.0, **budget)
        assert "budget reached: tiny/model has taken" in fails(ask, server, temperature=2.0, **budget)
        assert len(server.requests) == 2
        assert ask(server, **budget) == first  # what is kept costs nothing


def test_a_budget_stops_the_repair_too(ask):
    with ChatServer(completion(changed(scene="moon")), completion(script())) as server:
        assert "budget reached" in fails(ask, server, budget_tokens=100)
        assert len(server.requests) == 1


def test_a_budget_cannot_be_kept_where_tokens_are_not_told(ask):
    with ChatServer(completion(script(), usage=None)) as server:
        ask(server, budget_tokens=10)
        assert "does not report its tokens (1 replies)" in fails(ask, server, temperature=1.0, budget_tokens=10)
        assert len(server.requests) == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with ChatServer(completion(script())) as server, pytest.raises(NoAnswer, match="let XDG_CACHE_HOME name another folder"):
        Screenwriter(asker_on(server, tmp_path / "file" / "answers", print)).annotate(VIEW)


def test_a_damaged_account_is_named(ask):
    ask.cache.mkdir()
    (ask.cache / "usage.json").write_text("{")
    with ChatServer(completion(script())) as server:
        assert "usage.json: damaged" in fails(ask, server)
        assert server.requests == []
