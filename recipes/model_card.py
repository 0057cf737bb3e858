"""The model card of a checkpoint, rendered from the record of its own training (:mod:`recipes.record`) and nothing else.

What a record does not hold the card calls "not recorded"; nothing is guessed. Names and licences come from films and their
owners, so every one of them is made harmless for Markdown (:func:`curation.card.cell`), and the front matter is written by a
YAML library.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from animeshooter_dataset import slug
from curation.card import cell, hub_licence
from recipes.record import SAMPLES, STILLS, base_weights, chain, curve, read_films, read_record

TEMPLATE = Path(__file__).with_name("model_card.md")
LISTED_FILMS = 50
"""Films and attributions named in the card; all are in ``films.jsonl``."""
LISTED_LICENCES = 20
"""Licences named in the card, the most frequent first."""
UNKNOWN = "not recorded"
BARS = "▁▂▃▄▅▆▇█"
STAGES = {
    "pretrain_vae": "the VAE from nothing",
    "pretrain": "the video transformer from nothing, under text features",
    "align": "condition alignment, the first of four stages",
    "single_shot": "single shots, the second of four stages",
    "multi_shot": "stories of several shots, the third of four stages",
    "lora": "one film or character, the last of four stages",
    "cogvideo_lora": "a LoRA on the video transformer alone, the paper's baseline",
}
PARTS = {
    "mllm": ("mllm", "reads the reference picture, the captions and the last frames"),
    "mllm_lora": ("new", "adapts it"),
    "adapter": ("new", "queries and Q-Former: its states to the video transformer's condition"),
    "text_encoder": ("video", "the target of alignment; not needed to generate"),
    "transformer": ("video", "denoises the video"),
    "transformer_lora": ("new", "adapts it to one film or character"),
    "context": ("new", "the second pathway: tells the video transformer which clean frame is a reference, which a memory"),
    "context_lora": ("new", "teaches it to read them"),
    "vae": ("video", "pixels to latents and back"),
}
"""Components: which base they come from, and what they are for."""
GENERATES = ("mllm", "transformer", "vae")
"""The components without whose weights nothing but noise can come out."""


def render_model_card(checkpoint: Path, *, repo_id: str | None = None, datasets: Sequence[str] = ()) -> str:
    """The text of ``README.md`` for a checkpoint, with the YAML that the Hub reads.

    Args:
        checkpoint: folder of a checkpoint that one of the training stages wrote.
        repo_id: the Hub repository it will lie in; the example then names it.
        datasets: Hub repositories of what it was trained on; a record knows only a folder's name.

    Raises:
        DataError: there is no readable training record.
    """
    record, films = read_record(checkpoint), read_films(checkpoint)
    card = _Card(checkpoint, record, films, chain(record))
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cell": cell, "n": lambda value: f"{value:,}"}
    front = yaml.safe_dump(card.front(repo_id, datasets), sort_keys=False, allow_unicode=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        front=front,
        card=card,
        where=repo_id or "path/of/this/folder",
        stage=cell(record["stage"]),
        about=STAGES.get(record["stage"], "a stage of another version"),
        clip=record.get("config", {}).get("data", {}).get("clip", {}),
        subject=card.subject(),
        tiny=record.get("preset") == "tiny",
        parts=card.parts(),
        samples=card.samples(),
        stills=STILLS,
        held_out=card.held_out(),
        columns=[cell(entry["stage"]) for entry in card.chain],
        data=card.table(DATA_ROWS),
        procedure=card.table(PROCEDURE_ROWS),
        loss_curve=curve(record["losses"]) if record.get("losses") else [],
        versions=sorted(record.get("versions", {}).items()),
        datasets=list(datasets),
        listed_films=LISTED_FILMS,
        listed_licences=LISTED_LICENCES,
    )


@dataclass(frozen=True)
class _Card:
    """A checkpoint, its record, the films behind it, and what a card says of them."""

    folder: Path
    record: dict[str, Any]
    films: list[dict[str, Any]] | None
    chain: list[dict[str, Any]]

    # ---- what it is made from ----

    @property
    def begun(self) -> bool:
        """Whether the records go back to the first stage."""
        return self.chain[0].get("parent") is None

    @property
    def films_known(self) -> bool:
        """Whether the list of films is whole: recorded, and by every stage."""
        return self.films is not None and self.begun and all("record" in entry for entry in self.chain)

    @property
    def base(self) -> dict[str, dict[str, Any] | None]:
        """What each part started from; for old records, what their preset starts from."""
        recorded = next((entry["base"] for entry in self.chain if entry.get("base")), None)
        return recorded or base_weights(self.record["preset"], revisions=False)

    @property
    def bases(self) -> list[dict[str, Any]]:
        """The pretrained models it starts from."""
        found = {base["name"]: base for base in self.base.values() if base}
        return [found[name] for name in sorted(found)]

    @property
    def trained(self) -> dict[str, list[str]]:
        """Stages that trained each component, as far as recorded."""
        from model import STAGES as TRAINS
        from model.animeshooter_gen import WITH_CONTEXT

        parts = {stage: (*TRAINS.get(stage, ()), *WITH_CONTEXT.get(stage, ())) for stage in STAGES}
        return {part: [entry["stage"] for entry in self.chain if part in parts.get(entry["stage"], ())] for part in PARTS}

    @property
    def random_parts(self) -> list[str]:
        """Components that generate, with random weights that no stage has trained."""
        return [part for part in GENERATES if self.base.get(PARTS[part][0]) is None and not self.trained[part]]

    @property
    def random_parts_named(self) -> str:
        """They in a sentence."""
        names = [f"`{part}`" for part in self.random_parts]
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

    def parts(self) -> list[dict[str, Any]]:
        """The rows of the table of components."""
        counts, rows = self.record.get("parameters"), []
        for part, (source, role) in PARTS.items():
            if not (self.folder / part).is_dir():
                continue
            base = self.base.get(source)
            began = "new" if source == "new" else cell(base["name"]) if base else "random numbers"
            trained = ", ".join(self.trained[part]) or ("never" if self.begun else "not by the stages recorded")
            count = f"{sum(counts[part].values()):,}" if counts and part in counts else UNKNOWN
            rows.append({"name": part, "role": role, "count": count, "began": began, "trained": trained})
        return rows

    @property
    def total(self) -> int | None:
        """Parameters in all."""
        counts = self.record.get("parameters")
        return sum(sum(one.values()) for one in counts.values()) if counts else None

    def subject(self) -> str | None:
        """The film, character or folder of clips that a LoRA was trained on, ready for Markdown."""
        dataset = self.record.get("dataset") or {}
        if dataset.get("kind") == "clips":
            return f"the {dataset['samples']} clips of a folder ({cell(Path(str(dataset['directory'])).name)})"
        data = self.record.get("config", {}).get("data", {})
        video, character = data.get("video"), data.get("character")
        title = next((film["title"] for film in self.films or [] if film["video"] == video and film.get("title")), None)
        film = f"the film {cell(video)}" if title is None else f"the film “{cell(title)}” ({cell(video)})"
        named = [f"the character {cell(character)}"] if character else []
        return " of ".join([*named, film] if video else named) or None

    def held_out(self) -> list[tuple[int, dict[str, Any]]]:
        """Held-out losses of this stage by step, the first and the last few."""
        found = [(int(one["step"]), one) for one in self.record.get("held_out") or []]
        return found if len(found) <= 6 else [found[0], *found[-5:]]

    def samples(self) -> list[dict[str, Any]]:
        """The stories that were generated last during training: folder, captions, characters, step."""
        steps = sorted((self.folder / SAMPLES).glob("step-*"))
        found = []
        for folder in sorted(steps[-1].glob("story-*")) if steps else []:
            try:
                told = json.loads((folder / "story.json").read_text(encoding="utf-8"))
                found.append({**told, "folder": folder.relative_to(self.folder).as_posix(), "captions": list(told["captions"])})
            except (OSError, ValueError, TypeError, KeyError):
                continue  # a card can do without
        return found

    # ---- rights ----

    @property
    def licences(self) -> list[tuple[str, int]]:
        """Licences of the films with their number, most frequent first."""
        counted = Counter(film.get("licence") or "" for film in self.films or [])
        return sorted(counted.items(), key=lambda item: (-item[1], item[0]))

    @property
    def annotation_licences(self) -> list[str]:
        """Licences of the words that trained it, where they have one of their own."""
        return sorted({text for film in self.films or [] for text in film.get("annotation_licences", [])})

    @property
    def annotators(self) -> list[tuple[str, int]]:
        """Who wrote the captions, with the most stories that a stage read of each."""
        most: dict[str, int] = {}
        for entry in self.chain:
            for name, stories in (entry.get("dataset", {}).get("annotators") or {}).items():
                most[name] = max(stories, most.get(name, 0))
        return sorted(most.items())

    @property
    def unlicensed(self) -> int:
        """Films without a stated licence."""
        return sum(not film.get("licence") for film in self.films or [])

    @property
    def credits(self) -> list[str]:
        """Attributions that the films' licences ask for."""
        return sorted({film["attribution"] for film in self.films or [] if film.get("attribution")})

    @property
    def contacts(self) -> list[str]:
        """Where the datasets say that holders of rights are to write."""
        return sorted({entry["dataset"]["contact"] for entry in self.chain if entry.get("dataset", {}).get("contact")})

    def licence(self) -> tuple[str, str | None, str]:
        """The Hub's ``license`` and ``license_name``, and why in words.

        One licence only where everything that made the model bears it: base models, films and captions.
        """
        if not self.films_known or not self.films:
            return "other", "not-recorded", "what trained the model was not recorded in full"
        named = [base.get("licence") for base in self.bases] + [film.get("licence") for film in self.films]
        named += self.annotation_licences
        found = {hub_licence(text) or text for text in named}
        if None in found or "" in found:
            return "other", "not-stated", "some of what made the model states no licence"
        if len(found) > 1:
            reason = "base models, films and captions bear different licences: each goes on to hold for what is its own"
            return "other", "mixed", reason
        one = str(found.pop())
        if hub_licence(one) is None:
            return "other", slug(one), "the Hub has no name for the one licence that everything bears"
        return one, None, "everything that made this model bears it"

    def front(self, repo_id: str | None, datasets: Sequence[str]) -> dict[str, Any]:
        """The front matter."""
        licence, name, _ = self.licence()
        page = f"https://huggingface.co/{repo_id}" if repo_id and name else None
        tags = ["animation", "multi-shot", "storytelling", "character-consistency", "arxiv:2506.03126", "safetensors"]
        tags += ["lora"] if self.record["stage"] == "lora" else []
        tags += ["random-weights"] if self.random_parts else []
        head: dict[str, Any] = {
            "library_name": "animeshooter",
            "pipeline_tag": "text-to-video",
            "license": licence,
            "license_name": name,
            "license_link": page,
            "base_model": [base["name"] for base in self.bases if re.fullmatch(r"[\w.-]+/[\w.-]+", base["name"])],
            "datasets": list(datasets),
            "tags": tags,
        }
        return {key: value for key, value in head.items() if value}

    def table(self, rows: Sequence[tuple[str, Callable[[Mapping[str, Any]], str | None]]]) -> dict[str, list[tuple[str, Any]]]:
        """Rows of a table with a column for each stage, and as ``same`` what is the same in all of several stages.

        A row of which nobody recorded anything is left out.
        """
        differ: list[tuple[str, Any]] = []
        same: list[tuple[str, Any]] = []
        for name, tell in rows:
            cells = [_told(tell, entry) for entry in self.chain]
            if len(cells) > 1 and cells[0] is not None and len(set(cells)) == 1:
                same.append((name, cells[0]))
            elif any(text is not None for text in cells):
                differ.append((name, [UNKNOWN if text is None else text for text in cells]))
        return {"rows": differ, "same": same}


# ---- the rows of the tables: what each says of one stage; None where it was not recorded ----


def _told(tell: Callable[[Mapping[str, Any]], str | None], entry: Mapping[str, Any]) -> str | None:
    try:
        return tell(entry)
    except (KeyError, TypeError, IndexError, ValueError):  # a record of an earlier version
        return None


def _dropout(entry: Mapping[str, Any]) -> str:
    rates = {"both": "reference and captions together", "reference": "reference", "caption": "captions"}
    return ", ".join(f"{rates[name]} {rate:g}" for name, rate in entry["config"]["dropout"].items() if rate) or "none"


def _clip(entry: Mapping[str, Any]) -> str:
    clip, shots = entry["config"]["data"]["clip"], entry["config"]["data"]["shots"]
    return f"{shots} × {clip['frames']} frames of {clip['height']} × {clip['width']}, {clip['fps']:g}/s"


def _batch(entry: Mapping[str, Any]) -> str:
    train, processes = entry["config"]["train"], entry["run"]["processes"]
    share = train["global_batch"] // (processes * train["accumulate"])
    return f"{train['global_batch']} = {share} × {processes} × {train['accumulate']}"


def _paper(entry: Mapping[str, Any]) -> str:
    """The scale of the paper's own run of a stage, as our recipe's preset has it."""
    import importlib

    home = {"cogvideo_lora": "baselines.cogvideo_lora", "pretrain_vae": "pretrain"}.get(entry["stage"], entry["stage"])
    presets = importlib.import_module(f"recipes.{home}").PRESETS if entry["stage"] in STAGES else {}
    if "paper" not in presets:
        return "no such stage"
    train = presets["paper"].train
    return f"{train.steps:,} × {train.global_batch}"


def _spark(entry: Mapping[str, Any]) -> str:
    means = [mean for _, _, mean in entry.get("curve") or curve(entry["losses"])]
    low, high = min(means), max(means)
    return "".join(BARS[round((mean - low) / ((high - low) or 1) * (len(BARS) - 1))] for mean in means)


def _time(entry: Mapping[str, Any]) -> str:
    seconds = entry["run"]["seconds"]
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{seconds:.1f} s"


def _devices(entry: Mapping[str, Any]) -> str:
    run = entry["run"]
    if run["device"] != "cpu":
        return ", ".join(f"{count} × {cell(name)}" for name, count in run["devices"].items())
    processes = f"{run['processes']} process{'es' if run['processes'] > 1 else ''}"
    return f"{processes} on CPU ({', '.join(map(cell, run['devices']))})"


def _memory(entry: Mapping[str, Any]) -> str:
    run = entry["run"]
    return f"{run['peak_memory'] / 2**30:.2f} GiB of a {'GPU' if run['memory_of'] == 'device' else 'process'}"


def _rate(entry: Mapping[str, Any]) -> str:
    return f"{entry['config']['train']['learning_rate']:g}"


def _optimizer(entry: Mapping[str, Any]) -> str:
    told = entry["optimizer"]
    return f"{cell(told['name'])}, betas {told['betas'][0]:g} and {told['betas'][1]:g}, weight decay {told['weight_decay']:g}"


def _precision(entry: Mapping[str, Any]) -> str:
    return {"no": "float32"}.get(entry["run"]["precision"]) or cell(entry["run"]["precision"])


def _trainable(entry: Mapping[str, Any]) -> str:
    trained = {name: count["trainable"] for name, count in entry["parameters"].items() if count["trainable"]}
    return ", ".join(f"{cell(name)} {number:,}" for name, number in trained.items())


def _source(entry: Mapping[str, Any]) -> str:
    data = entry["dataset"]
    name = cell(data["directory"].replace("\\", "/").rstrip("/").rpartition("/")[2])
    return name + (f" (from the release {cell(data['release'])})" if data.get("release") else "")


DATA_ROWS = [
    ("dataset folder", _source),
    ("schema", lambda entry: cell(entry["dataset"]["schema_version"])),
    ("fingerprint", lambda entry: cell(entry["dataset"]["fingerprint"]["shards"])),
    ("split", lambda entry: cell(entry["config"]["data"]["split"])),
    ("films read", lambda entry: f"{entry['dataset']['films']:,}"),
    ("different shots read", lambda entry: f"{entry['dataset']['shots_read']:,}"),
    ("samples read", lambda entry: f"{entry['dataset']['samples_read']:,}"),
    ("epochs", lambda entry: f"{entry['dataset']['epochs']:.2f}"),
    ("a sample: shots × clip", _clip),
    ("captions", lambda entry: cell(entry["config"]["data"]["caption"])),
]
PROCEDURE_ROWS = [
    ("finished", lambda entry: cell(entry["run"]["finished"])),
    ("trained, parameters", _trainable),
    ("steps", lambda entry: f"{entry['steps']:,}"),
    ("batch = samples of a process × processes × accumulation", _batch),
    ("steps × batch of preset `paper`", _paper),
    ("loss of the first step", lambda entry: f"{entry['loss_first']:.4f}"),
    ("loss of the last step", lambda entry: f"{entry['loss_last']:.4f}"),
    ("loss at the end, smoothed", lambda entry: f"{entry['loss_smoothed']:.4f}"),
    ("course of the smoothed loss", _spark),
    ("optimizer", _optimizer),
    ("learning rate", _rate),
    ("schedule", lambda entry: cell(entry["optimizer"]["schedule"])),
    ("gradient clipping", lambda entry: f"{entry['config']['train']['clip_norm']:g}"),
    ("dropout for guidance", _dropout),
    ("arithmetic", _precision),
    ("seed", lambda entry: str(entry["config"]["train"]["seed"])),
    ("time in the steps", _time),
    ("devices", _devices),
    ("peak memory", _memory),
]
