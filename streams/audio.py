"""The training stream of AnimeShooter-audio: sound, the pictures it belongs to, and what is said of both.

``AudioStream`` reads ``audio/<split>-*.tar`` by byte range through ``index/audio-<split>.parquet``, in the order and with the
state of the other streams (``animeshooter_streams``). A sample is one clip: its waveform at a wanted rate and length, and its
frames where they are asked for; without frames no byte of video is read.

**In time.** The waveform begins at the time of the first sampled frame, to half a sample, and both go on in the film's own
time: a sound clip's frames are the ones on screen at their times, and unlike a shot's they are never spread. Clips that end
before their last frame is due are left out and counted. A waveform longer than what is left of its clip is filled up with
zeros, which the mask tells. The sound is that of the flac member, which begins with the clip's first frame exactly; the AAC
track of the mp4, which an encoder's delay shifts, is not read.

**References.** One image a sample, of a character in the clip, off the sheets of the shots that the clip overlaps, by the rule
of the other streams: from another shot where there is one.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from animeshooter_records import AUDIO_INDEX_SCHEMA, AudioRecord, DataError, ShotRecord, parse
from streams.batches import shared_empty, start_of
from streams.clips import ClipSpec, cut_reference, pick_reference
from streams.indexed import Bucket, IndexedStream, chosen_rows, hash_columns, told_clip
from streams.order import draw
from streams.sound import SoundSpec, choose_frames, decode_frames, decode_sound, frame_times
from streams.store import Store, StoreOptions, store_index, store_manifest, store_splits
from streams.walk import MemberReader, Place, Ranges, Request
from streams.watch import BadSamples
from streams.where import Condition, conditions

ARRAYS = ("waveform", "mask", "frames")


@dataclass(frozen=True)
class AudioSample:
    """One clip. ``waveform`` is float32 [channels, samples] in about [-1, 1]; ``mask`` bool [samples], False where padded.

    ``frames`` is uint8 [F, H, W, 3], None where the stream reads no pictures. ``start`` is the time in the clip, in seconds, of
    the waveform's first sample and the first frame. ``type``, ``sound_description`` and ``visual_context`` are of the sound,
    ``narrative`` and ``descriptive`` the captions of the pictures. ``reference`` is an RGB cut-out on white of ``character``,
    taken from ``reference_shot``; all three are None where there is none.
    """

    key: str
    waveform: np.ndarray
    mask: np.ndarray
    frames: np.ndarray | None
    start: float
    type: str
    sound_description: str
    visual_context: str
    narrative: str
    descriptive: str
    reference: Image.Image | None = None
    character: str | None = None
    reference_shot: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The clip's key, in the form that samples of shots have theirs."""
        return (self.key,)


@dataclass(frozen=True)
class AudioBatch:
    """A micro-batch: ``waveform`` float32 [B, channels, samples], ``mask`` bool [B, samples], ``frames`` uint8 [B, F, H, W, 3].

    ``slots`` are the samples' places in the global batch, the same whatever the number of processes. ``clip`` says what the
    frames are; both are None without pictures. ``epoch`` and ``source`` are as in a batch of shots. The arrays of the
    samples are views of the tensors.
    """

    step: int
    slots: list[int]
    samples: list[AudioSample]
    waveform: torch.Tensor
    mask: torch.Tensor
    frames: torch.Tensor | None
    clip: ClipSpec | None
    epoch: int = 0
    source: int = 0

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """The clip of each sample."""
        return [sample.keys for sample in self.samples]

    def __getstate__(self) -> dict[str, Any]:
        """From a worker waveforms and pictures travel once: in the tensors, which lie in shared memory."""
        bare = [replace(one, **dict.fromkeys(ARRAYS)) for one in self.samples]  # type: ignore[arg-type]
        return {**self.__dict__, "samples": bare}

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays = {name: state[name].numpy() for name in ARRAYS if state[name] is not None}
        state["samples"] = [
            replace(one, **{name: array[number] for name, array in arrays.items()})
            for number, one in enumerate(state["samples"])
        ]
        self.__dict__.update(state)


class AudioRoom:
    """The tensors of a micro-batch, into which its samples are decoded; in a worker they lie in shared memory."""

    def __init__(self, requests: list[Request], sound: SoundSpec) -> None:
        make = torch.empty if get_worker_info() is None else shared_empty
        size, clip = len(requests), requests[0].clip
        self.waveform = make((size, sound.channels, sound.samples), dtype=torch.float32)
        self.mask = make((size, sound.samples), dtype=torch.bool)
        shape = (size, clip.frames, clip.height, clip.width, 3) if clip else None
        self.frames = make(shape, dtype=torch.uint8) if shape else None


class AudioReader(MemberReader):
    """Decodes audio clips.

    Args:
        store: of the dataset directory.
        name: how messages name it.
        seed: of the draws of starts and references.
        sound: what waveforms are.
        pictures: whether frames are decoded.
        references: whether reference images are cut.
        verify: compare what was read with the hashes of the index.
        forgive: report samples that cannot be read, rather than raise.
        patience: see :class:`MemberReader`.
    """

    config = "audio"

    def __init__(
        self,
        store: Ranges,
        name: str,
        seed: int,
        sound: SoundSpec,
        *,
        pictures: bool,
        references: bool,
        verify: bool = False,
        forgive: bool = False,
        patience: float | None = None,
    ) -> None:
        super().__init__(store, name, forgive, patience=patience)
        self.seed, self.sound, self.references, self.checked = seed, sound, references, verify
        self.members = ("mp4", "flac", "json") if pictures else ("flac", "json")
        self.shots = MemberReader(store, name)

    def first_read(self) -> tuple[str, ...]:
        """No byte of video without frames."""
        return self.members

    def __getitems__(self, requests: list[Request]) -> Any:
        """Decode one micro-batch."""
        shots = [shot for request in requests for row in request.rows for shot in row["overlapped"]]
        self.store.prefetch([(self.shots.shard(shot), shot["json_offset"], shot["json_size"]) for shot in shots])
        return super().__getitems__(requests)

    def make_room(self, requests: list[Request]) -> AudioRoom:
        """The batch's tensors."""
        return AudioRoom(requests, self.sound)

    def sample(self, request: Request, room: AudioRoom | None = None, number: int = 0) -> AudioSample:
        """Decode one clip; see :meth:`MemberReader.sample`."""
        (row,), clip, epoch = request.rows, request.clip, request.place.epoch
        where, blobs = self.where(row), self.read(row, self.members)
        record = cast(AudioRecord, parse("audio", blobs["json"], where))
        if record.key != row["key"]:
            raise DataError(
                f"{where}: the shard holds {record.key} there; get index and shard again, they do not belong together"
            )
        if self.checked:
            _verify(row, blobs, where)
        shots = [self._shot(shot) for shot in row["overlapped"]] if self.references or clip else []
        room = room or AudioRoom([request], self.sound)
        start = self._start(row, epoch)
        frames = room.frames[number].numpy() if room.frames is not None else None
        if clip is not None and frames is not None:
            times, seconds = frame_times(blobs["mp4"], row["frames"], where), row["samples"] / row["sample_rate"]
            at, _ = start_of(self.seed, epoch, row["key"], clip)
            chosen = choose_frames(times, seconds, clip, self.sound.seconds, at)
            frames[:] = decode_frames(blobs["mp4"], times, chosen, clip, where, _picture(record, shots))
            start = float(times[chosen.frames[0]])
        waveform, mask = decode_sound(blobs["flac"], row, self.sound, start, where)
        room.waveform[number], room.mask[number] = torch.from_numpy(waveform), torch.from_numpy(mask)
        reference, character, shot = self._reference(request, record, shots) if self.references else (None, None, None)
        return AudioSample(
            key=record.key,
            waveform=room.waveform[number].numpy(),
            mask=room.mask[number].numpy(),
            frames=frames,
            start=start,
            type=record.type,
            sound_description=record.sound_description,
            visual_context=record.visual_context,
            narrative=record.narrative_caption,
            descriptive=record.descriptive_caption,
            reference=reference,
            character=character,
            reference_shot=shot,
        )

    def _start(self, row: dict[str, Any], epoch: int) -> float:
        """Where the waveform begins, on a sample of its own rate."""
        room = max(0.0, row["samples"] / row["sample_rate"] - self.sound.seconds)
        return math.floor(draw(self.seed, epoch, row["key"], "start") * room * self.sound.rate) / self.sound.rate

    def _shot(self, row: dict[str, Any]) -> ShotRecord:
        blob = self.shots.read(row, ("json",))["json"]
        return cast(ShotRecord, parse("shots", blob, self.shots.where(row)))

    def _reference(
        self, request: Request, record: AudioRecord, shots: list[ShotRecord]
    ) -> tuple[Image.Image | None, str | None, str | None]:
        """The image of a character of the clip, by the rule of the other streams."""
        mine = [
            shot.model_copy(update={"references": [one for one in shot.references if one.character in record.characters]})
            for shot in shots
        ]
        picked = pick_reference(mine, draw(self.seed, request.place.epoch, record.key, "reference"))
        if picked is None:
            return None, None, None
        row, chosen = request.rows[0]["overlapped"][picked[0]], picked[1]
        sheet = self.shots.read(row, ("png",))["png"]
        return cut_reference(sheet, chosen, self.shots.where(row)), chosen.character, chosen.shot

    def collate(self, requests: list[Request], samples: list[AudioSample], room: AudioRoom | None = None) -> AudioBatch:
        """Put the samples of one micro-batch together; see :class:`AudioBatch`."""
        place = requests[0].place
        if room is None:
            room = AudioRoom(requests, self.sound)
            for name in ARRAYS:
                if getattr(room, name) is not None:
                    getattr(room, name).numpy()[:] = np.stack([getattr(sample, name) for sample in samples])
        return AudioBatch(
            step=place.step,
            slots=[request.place.slot for request in requests],
            samples=samples,
            waveform=room.waveform,
            mask=room.mask,
            frames=room.frames,
            clip=requests[0].clip,
            epoch=place.epoch,
            source=place.source,
        )


def _verify(row: dict[str, Any], blobs: dict[str, bytes], where: str) -> None:
    for member, column in (("flac", "sha256"), ("mp4", "mp4_sha256")):
        if member in blobs and hashlib.sha256(blobs[member]).hexdigest() != row[column]:
            raise DataError(f"{where}: its {member} differs from the {column} of the index; build or download the shard again")


def _picture(record: AudioRecord, shots: list[ShotRecord]) -> tuple[int, int, int, int] | None:
    """What lies inside black bars, as the clip's shots say it, which are of the same film at the same size."""
    told = {shot.picture for shot in shots if (shot.height, shot.width) == (record.height, record.width)}
    return told.pop() if len(told) == 1 else None


class AudioStream(IndexedStream):
    """One audio clip a sample, in the order of the index before shuffling: waveform, words, and frames if asked for."""

    carried = (
        *("key", "shard", "frames", "samples", "sample_rate", "channels", "sha256", "mp4_sha256"),
        *("mp4_offset", "mp4_size", "flac_offset", "flac_size", "json_offset", "json_size"),
    )

    def __init__(
        self,
        directory: str | Path,
        sound: SoundSpec,
        frames: ClipSpec | None = None,
        *,
        global_batch: int,
        split: str = "train",
        seed: int = 0,
        where: Sequence[str | tuple[str, str, Any] | Condition] = (),
        reference: bool = True,
        bad_samples: int | float | BadSamples = 0,
        patience: float | None = 300.0,
        options: StoreOptions | None = None,
    ) -> None:
        """Open a dataset.

        Args:
            directory: dataset directory, or the address of one (see ``streams.store``).
            sound: what waveforms are.
            frames: what frames are; None reads no video at all.
            global_batch: samples a step, over all processes and accumulation.
            split: train, validation or test.
            seed: of the order and of every draw.
            where: conditions over the columns of the index that clips must meet (see ``streams.where``).
            reference: also a reference image, which reads the annotations of the shots that the clip overlaps.
            bad_samples: how many clips (or which share) that cannot be read are replaced by others, each one named.
            patience: seconds a clip may take until the reading process prints its stacks; after twice that it stops.
            options: how the dataset is read; ``verify`` compares sound and video with the hashes of the index.

        Raises:
            DataError: no such dataset or split, no audio clips or no index of them, or nothing left to train on.
        """
        super().__init__()
        if global_batch < 1:
            raise DataError(f"stream: the global batch must be at least 1, not {global_batch}")
        self.store = Store.open(directory, options)
        self.name, self.split, self.seed, self.sound = self.store.name, split, seed, sound
        self.reference, self.patience = reference, patience
        if split not in store_splits(self.store, "audio"):
            from animeshooter_dataset import no_audio_index  # brings the datasets library, which readers do without

            raise no_audio_index(self.name, split, store_manifest(self.store).get("files", ()))
        self.index = store_index(self.store, split, config="audio").combine_chunks()
        self.where = conditions(where, AUDIO_INDEX_SCHEMA)
        chosen = chosen_rows(self.index, self.where, self.name, split)
        self.seconds = self.index["samples"].to_numpy() / self.index["sample_rate"].to_numpy()
        self.too_short = np.zeros(len(chosen), bool)
        if frames is not None:
            self.too_short = chosen & (self.seconds < (frames.frames - 1) / frames.fps)
        usable = chosen & ~self.too_short
        self.chosen = int(chosen.sum())
        self.lay_out(
            np.arange(len(usable))[:, None], np.where(usable, 0, -1).astype(np.int16), [Bucket(frames, 1, global_batch)]
        )
        if not len(self):
            raise DataError(f"{self.name}: nothing to train on in split '{split}': {self._counts()}")
        self.allow_bad(bad_samples)
        self._overlap = _Overlap(self.store, split, self.index) if reference or frames else None
        if len(self) < global_batch:
            warnings.warn(
                f"{len(self)} clips are fewer than the global batch of {global_batch}: every step repeats some of them",
                stacklevel=2,
            )

    def _counts(self) -> str:
        short = f", {int(self.too_short.sum())} shorter than its frames left out" if self.buckets[0].clip else ""
        return f"{self.index.num_rows} audio clips, {self.chosen} chosen{short}, {len(self)} samples"

    def describe(self) -> str:
        """One line for the log: what the stream holds, what it left out, and how long an epoch is."""
        padded = int((self.seconds[self.plan.bucket >= 0] < self.sound.seconds - 1e-6).sum())
        steps, batch = self.steps_per_epoch, self.buckets[0].batch
        return (
            f"AudioStream {self.name} [{self.split}]: {self._counts()}, {padded} shorter than {self.sound.seconds:g} s; "
            f"{steps} steps of {batch} an epoch"
        )

    def identity(self) -> dict[str, Any]:
        """See :meth:`IndexedStream.identity`."""
        clip, batch = self.buckets[0].clip, self.buckets[0].batch
        return {
            "global_batch": batch,
            "sound": asdict(self.sound),
            "clip": told_clip(clip) if clip else None,
            "where": [str(condition) for condition in self.where],
            "reference": self.reference,
        }

    def fingerprint(self) -> dict[str, Any]:
        """See :meth:`IndexedStream.fingerprint`."""
        files = store_manifest(self.store).get("files", {})
        tars = [f"{name} {files[name]}" for name in sorted(files) if name.startswith(f"audio/{self.split}-")]
        return {
            "audio_clips": self.index.num_rows,
            "keys": hash_columns(self.index, ["key"]),
            "sounds": hash_columns(self.index, ["sha256", "mp4_sha256"]),
            "shards": hashlib.sha256("\n".join(tars).encode()).hexdigest()[:16],
        }

    def requests(self, places: Sequence[Place]) -> list[Request]:
        """See :meth:`Walk.requests`; with the rows of the shots that each clip overlaps, where they are needed."""
        found = super().requests(places)
        return [replace(one, rows=({**one.rows[0], "overlapped": self._shots_of(one.place)},)) for one in found]

    def _shots_of(self, place: Place) -> list[dict[str, Any]]:
        return self._overlap.rows(self.rows(place)[0]) if self._overlap else []

    def reader(self) -> AudioReader:
        """See :meth:`Walk.reader`."""
        return AudioReader(
            self.store,
            self.name,
            self.seed,
            self.sound,
            pictures=self.buckets[0].clip is not None,
            references=self.reference,
            verify=self.store.options.verify,
            forgive=self.bad is not None,
            patience=self.patience,
        )

    def __getitem__(self, place: Place | int) -> AudioSample:
        """Decode a sample: of the first epoch if only its row is given."""
        place = place if isinstance(place, Place) else Place(0, range(len(self.sequences))[place])
        return self.reader().sample(self.requests([place])[0])


class _Overlap:
    """The shots that each audio clip overlaps: their rows of the index of shots, as far as they are there."""

    columns = ("key", "shard", "json_offset", "json_size", "png_offset", "png_size")

    def __init__(self, store: Store, split: str, index: pa.Table) -> None:
        keys = index["shots"].combine_chunks()
        shots = store_index(store, split, self.columns)
        found = pc.index_in(keys.flatten(), value_set=shots["key"].combine_chunks())
        wanted = pc.unique(found.drop_null())
        self.shots = shots.take(wanted).combine_chunks()
        self.at = pc.fill_null(pc.index_in(found, value_set=wanted), -1).to_numpy()
        self.edges = np.concatenate([[0], np.cumsum(pc.fill_null(pc.list_value_length(keys), 0).to_numpy())])

    def rows(self, clip: int) -> list[dict[str, Any]]:
        """Of the clip in this row of the index of audio clips."""
        places = self.at[self.edges[clip] : self.edges[clip + 1]]
        return self.shots.take(places[places >= 0]).to_pylist()
