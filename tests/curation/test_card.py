import json
import re

import pytest
import yaml
from datasets import DatasetInfo
from datasets.utils.resources import __path__ as resources
from huggingface_hub import DatasetCard, DatasetCardData
from packed import Rendered, story, write_packed

from animeshooter_dataset import (
    AnnotatedBy,
    AvailabilityRecord,
    DroppedRecord,
    Evidence,
    FilmRecord,
    RemovalRecord,
    RightsRecord,
    dump,
    read_manifest,
)
from curation.card import cell, hub_licence, render_card
from curation.lint import lint
from curation.pack import Hashed, Packer
from curation.rules import dump_rules, load_rules

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](https://evil.example/x.png)",
    "[click](javascript:alert(1))",
    "https://evil.example/a|b`c",
    "</td></tr></table><h1>own</h1>",
    "| a | b |\n|---|---|\n# heading",
    "\n\n## heading\n\n- item",
    "`code` **bold** _it_ ~~no~~ $x^2$ \\(y\\)",
    "<!--",
    "&lt;b&gt; &#60;i&#62;",
    "me@evil.example",
    "www.evil.example",
    "evil.example",
    "<https://evil.example>",
    "[ref]: https://evil.example",
    "[^1]: foot",
    "---",
    "1. one",
    "- - x",
    "+ x",
    "\u202egnp.live",
    "```\nfence",
    ":smile: @user #1",
    "\\",
    "\\`<b>`",
    "{{ 7 * 7 }} {% raw %}",
    "x" * 5000,
]


def rendered(text):
    """The tokens of a card's text, inline ones spread out, as a reader of GitHub's Markdown sees them."""
    markdown_it = pytest.importorskip("markdown_it")
    body = text.split("---\n", 2)[2]
    tokens = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body)
    return [leaf for token in tokens for leaf in (token.children or [token])]


def links(tokens):
    return {token.attrs["href"] for token in tokens if token.type == "link_open"}


def packed_films(directory, films, **finish):
    """A dataset of films given as (id, changes of every record, rights line or None, film line)."""
    directory.mkdir(parents=True)
    with Packer(directory, {"train": 1.0}, 2**20, lambda row: []) as packer:
        for number, (video, change, rights, film) in enumerate(films):
            packer.add_film(film, rights)
            if change is not None:
                one = story(video, 0, 2 + number % 3)
                shots = [shot.model_copy(update=change) for shot in one.shots]
                packer.add(Rendered(one.story.model_copy(update=change), shots, [], None, {}))
        for name in ("availability", "removals"):
            if lines := finish.pop(name, None):
                packer.lines[name] = Hashed(directory / f"{name}.jsonl")
                for line in lines:
                    packer.lines[name].write(dump(line) + b"\n")
        packer.add_dropped(finish.pop("dropped", []))
        packer.finish({"settings": {}, "rules": [], "tools": {}} | finish)
    return directory


def kept(video, licence=None, annotation=None, kind="sidecar", **rights):
    film = FilmRecord(video=video, film=f"{video}.mp4", state="kept", stories=1, duration=60.0, width=640, height=360)
    right = RightsRecord(video=video, licence=licence, state="kept", sha256="0" * 64, **rights)
    change = {"licence": licence, "annotation_licence": annotation, "annotator": AnnotatedBy(kind=kind)}
    return video, change, right, film


def gone(video, state):
    film = FilmRecord(video=video, film=video, state=state, stage="collect" if state == "unavailable" else None, reason="gone")
    return video, None, RightsRecord(video=video, state=state), film


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return write_packed(tmp_path_factory.mktemp("card") / "data", films=3, stories=2, shots=4)


@pytest.fixture(scope="module")
def card(packed):
    return (packed / "README.md").read_text()


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What an import of the official release leaves: 4 films of 8, of which 3 could not be had and 1 is withdrawn."""
    films = []
    for number in range(4):
        video, change, right, film = kept(
            f"video{number}", "CC BY 4.0" if number else None, "CC BY-NC 4.0", "release",
            source=f"https://www.youtube.com/watch?v=AAAAAAAAAA{number}", title=f"Film {number}", uploader="Studio",
        )  # fmt: skip
        detail = f"{30 + number} of 40 told shot boundaries meet a detected one"
        evidence = [Evidence(check="released cuts", passed=True, value=0.8, detail=detail)]
        films.append((video, change, right, film.model_copy(update={"evidence": evidence})))
    films += [gone(f"video{number}", "unavailable") for number in (4, 5, 6)] + [gone("video7", "withdrawn")]
    sources = [right.source or f"https://www.youtube.com/watch?v=AAAAAAAAAA{n}" for n, (_, _, right, _) in enumerate(films[:7])]
    films = [
        (video, change, right.model_copy(update={"source": sources[n]}) if n < 7 else right, film)
        for n, (video, change, right, film) in enumerate(films)
    ]
    asked = [
        AvailabilityRecord(
            video=f"video{n}", source=sources[n], state="available" if n < 4 else "gone", checked=f"2026-11-{18 + n % 2}"
        )
        for n in range(7)
    ]
    return packed_films(
        tmp_path_factory.mktemp("import") / "data",
        films,
        availability=asked,
        removals=[RemovalRecord(video="video7", removed="2026-11-19", matched="uploader", stories=2, shots=9, audio=1)],
        dropped=[DroppedRecord(film=f"video{n}", stage="collect", reason="gone") for n in (4, 5, 6)],
        release={"name": "zip", "audio": None, "videos": 8, "stories": 9, "shots": 99, "annotation_licence": "CC BY-NC 4.0"},
        contact="rights@studio.example",
        rules=dump_rules(load_rules()),
    )


def front(text):
    return yaml.safe_load(text.split("---\n", 2)[1])


def section(text, heading):
    """The text under a heading, up to the next of its level or above."""
    level, rest = re.search(rf"^(#+) {re.escape(heading)}\n(.*)", text, re.M | re.S).groups()
    return re.split(rf"^#{{2,{len(level)}}} ", rest, maxsplit=1, flags=re.M)[0]


def test_the_counts_are_those_of_the_shards(card):
    assert "6 stories in 24 shots, cut to the frame from\n3 animated films" in card
    assert "| train | 3 | 6 | 24 | 0 |" in card
    assert "| shots a story | 4 | 4 | 4 | 4 | 4 | 4 | 14.82 |" in card
    words = 6 * len("A fox walks through a wood.".split()) + 24 * (len("The fox does thing 0.".split()) + 11)
    assert f"{words:,} words" in card


def test_the_same_directory_gives_the_same_card_and_lint_accepts_it(packed, card):
    assert render_card(packed, read_manifest(packed)) == card
    assert not [problem for problem in lint(packed, decode=False).problems if "README" in problem]


def test_the_media_of_the_shards_are_not_read(packed, card, monkeypatch):
    import animeshooter_dataset
    import curation.card_facts as facts

    def only_json(tar, wanted=None, keys=None):
        assert set(wanted) == {"json"}
        assert tar.parent.name != "shots"
        return animeshooter_dataset.read_samples(tar, wanted, keys)

    monkeypatch.setattr(facts, "read_samples", only_json)
    assert render_card(packed, read_manifest(packed)) == card


def test_a_datasheet_has_its_parts_and_a_rights_holder_finds_his(card):
    headings = re.findall(r"^## (.+)$", card, re.M)
    for part in ("Motivation", "Composition", "Collection process", "Preprocessing, cleaning, labelling", "Uses"):
        assert part in headings
    assert {"Rights and removal", "Distribution", "Maintenance", "Known limits", "Citation"} <= set(headings)
    anchors = {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in re.findall(r"^#+ (.+)$", card, re.M)}
    inside = {href[1:] for href in links(rendered(card)) if href.startswith("#")}
    assert "rights-and-removal" in inside
    assert inside <= anchors
    assert card.split("---\n", 2)[2].index("(#rights-and-removal)") < 2500


def test_the_hub_takes_the_front_matter(card, packed):
    told = DatasetCardData(**front(card)).to_dict()
    DatasetCard(card)
    with open(f"{resources[0]}/size_categories.json") as sizes, open(f"{resources[0]}/creators.json") as creators:
        assert set(told["size_categories"]) <= set(json.load(sizes))
        assert set(told["annotations_creators"]) <= set(json.load(creators)["annotations"])
    assert told["license"] == "cc0-1.0"
    for told_info in told["dataset_info"]:
        info = DatasetInfo._from_yaml_dict(told_info)
        size = sum(path.stat().st_size for path in (packed / info.config_name).glob("*.tar"))
        assert (info.download_size, info.dataset_size) == (size, size)
        assert sum(split.num_examples for split in info.splits.values()) == {"shots": 24, "stories": 6}[info.config_name]


@pytest.mark.parametrize(
    ("films", "licence"),
    [
        ([("CC BY 3.0", None)], "cc-by-3.0"),
        ([("CC BY-NC 4.0", "CC BY-NC 4.0")], "cc-by-nc-4.0"),
        ([(None, None)], "unknown"),
        ([(None, "CC BY-NC 4.0")], "other"),
        ([("CC BY 4.0", "CC BY-NC 4.0")], "other"),
        ([("CC BY 4.0", None), (None, None)], "other"),
        ([("all mine", None)], "other"),
    ],
)
def test_one_licence_is_told_only_where_all_have_it(tmp_path, films, licence):
    made = [kept(f"film{n}", media, words) for n, (media, words) in enumerate(films)]
    directory = packed_films(tmp_path / "data", made)
    told = front((directory / "README.md").read_text())
    assert told["license"] == licence
    assert ("license_name" in told) == (licence == "other")
    named = front(render_card(directory, read_manifest(directory) | {"repository": "org/name"}))
    if licence == "other":
        assert named["license_link"] == "https://huggingface.co/datasets/org/name#rights-and-removal"


def test_an_import_tells_its_terms_its_losses_and_how_to_get_out(imported):
    text = (imported / "README.md").read_text()
    assert lint(imported, decode=False).problems == []
    terms = section(text, "On what terms is it here?")
    assert "| CC BY 4.0 | 3 | 3 |" in terms
    assert "| not stated | 1 | 1 |" in terms
    assert "| CC BY-NC 4.0 | 4 |" in terms
    assert "it is no permission" in terms
    out = section(text, "How do I get it out?")
    assert "rights@studio.example" in out
    assert "animeshooter takedown" in out
    assert "1 film taken out, with 2 stories, 9 shots and\n1 audio clip; the last on 2026-11-19" in out
    assert "video7" not in text
    left = section(text, "What was left out")
    assert "| films that could not be had of the 8 that the release tells | 3 |" in left
    assert "stage collect" not in left
    assert "1 film, of which nothing is here" in left
    assert "4 of 7 sources available (57.1 %) between 2026-11-18 and 2026-11-19; 3 gone" in text
    assert "126 of 160 told boundaries met a\n  detected cut (79 %)" in text
    assert "written by a vision language model for the official AnimeShooter release" in text
    assert "commercial use of what stands under a non-commercial licence" in text
    assert "| youtube.com | 4 |" in text.replace("`", "")
    assert front(text)["source_datasets"] == ["extended|other-animeshooter"]


def test_what_was_not_asked_or_taken_out_is_said_so(card):
    assert "Whether the sources can still be had was not checked" in card
    assert "So far no film was taken out." in card
    assert "the discussions of its repository" in card
    assert "It is not the official release" in card
    assert "stands under a non-commercial licence" not in card


def test_the_films_that_are_listed_are_few_and_the_rest_is_pointed_at(tmp_path):
    text = (write_packed(tmp_path / "data", films=53, stories=1, shots=1) / "README.md").read_text()
    assert text.count("| `film0") == 50
    assert "The first 50 of 53 films stand" in text
    assert "3 more stand in [`rights.jsonl`]" in text


def test_a_repository_and_a_gate_are_told_when_asked_for(packed, card):
    manifest = read_manifest(packed)
    told = render_card(packed, manifest | {"repository": "org/name", "gated": True})
    assert 'load_dataset("org/name", "shots", split="train", streaming=True)' in told
    assert 'revision="v1.2.0"' in told
    assert "https://huggingface.co/datasets/org/name/discussions" in links(rendered(told))
    assert front(told)["extra_gated_prompt"]
    assert list(front(told)["extra_gated_fields"].values()) == ["checkbox"]
    own = {"prompt": "Who are you?", "fields": {"Name": "text"}}
    assert front(render_card(packed, manifest | {"gated": own}))["extra_gated_fields"] == {"Name": "text"}
    assert "extra_gated_prompt" not in front(card)
    evil = render_card(packed, manifest | {"repository": 'x/y"; import os #'})
    assert "import os" not in evil


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_from_a_film_stays_text(text):
    body = f"---\n---\n\n| a | b |\n|---|---|\n| {cell(text)} | end |\n\n- {cell(text)}\n\n{cell(text)} end\n"
    tokens = rendered(body)
    assert not {token.type for token in tokens} & {
        "html_inline",
        "html_block",
        "link_open",
        "image",
        "heading_open",
        "fence",
        "hr",
    }
    assert [token.type for token in tokens].count("td_open") == 2
    assert [token.type for token in tokens].count("list_item_open") == 1
    shown = "".join(token.content for token in tokens if token.type == "text")
    assert not re.search(r"://|www\.|@", shown)
    assert len(cell(text)) < 1000


def test_a_text_from_a_film_stays_readable():
    assert cell("Sita & the <3> foxes | part *2*") == "Sita &amp; the &lt;3&gt; foxes \\| part \\*2\\*"
    assert cell("(c) Blender Foundation, CC BY 3.0") == "(c) Blender Foundation, CC BY 3.0"
    assert cell("https://films.example/1") == "`https://films.example/1`"
    assert cell("狐と森") == "狐と森"
    assert cell(None) == cell(" \n") == "not stated"


def test_hostile_words_anywhere_leave_the_card_as_it_is(tmp_path):
    films = []
    for number, evil in enumerate(HOSTILE):
        rights = dict.fromkeys(("title", "source", "uploader", "attribution", "retrieved"), evil)
        video, change, right, film = kept(f"film{number:02d}", evil, evil, evil, **rights)
        change |= {"annotator": AnnotatedBy(kind=evil, model=evil), "attribution": evil, "storyline": evil}
        films.append((video, change, right, film))
    directory = packed_films(
        tmp_path / "data",
        films,
        dropped=[DroppedRecord(film=evil, stage=evil, reason=evil) for evil in HOSTILE],
        contact=HOSTILE[0] + HOSTILE[2],
        settings={"references": {"segmenter": HOSTILE[2], "verifier": HOSTILE[1]}, "language": HOSTILE[3]},
    )
    text = (directory / "README.md").read_text()
    tokens = rendered(text)
    assert not {token.type for token in tokens} & {"html_inline", "html_block", "image"}
    assert links(tokens) == {
        href for href in links(tokens) if href.startswith(("#", "rights.jsonl", "https://arxiv.org/abs/2506"))
    }
    assert not any(re.search(r"://|www\.", token.content) for token in tokens if token.type == "text")
    plain = (write_packed(tmp_path / "plain", films=1) / "README.md").read_text()
    headings = [re.findall(r"^#+ .+$", each, re.M) for each in (text, plain)]
    assert headings[0] == headings[1]
    assert front(text)["license"] == "other"


def test_licences_as_the_hub_spells_them():
    assert hub_licence("CC BY-NC-SA 4.0") == "cc-by-nc-sa-4.0"
    assert hub_licence("cc0-1.0") == "cc0-1.0"
    assert hub_licence("Creative Commons Attribution license (reuse allowed)") is None
    assert hub_licence(None) is None
