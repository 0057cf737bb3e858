import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from indexes import write_index
from tiny_dataset import write_dataset

from animeshooter_dataset import DataError
from animeshooter_streams import ShotStream, StoryStream
from streams.clips import ClipSpec
from streams.explain import explain, keys, open_for_report

CLIPS = [ClipSpec(frames, 32, width, 8, min_frames=4) for frames in (5, 17) for width in (48, 32)]


@pytest.fixture
def directory(tmp_path):
    """Twelve shots: a title card, two that rules reject, one too short; the others of two lengths, the last one half as big."""
    write_index(tmp_path, [12], fps=8.0)
    columns = {
        "clean_end": [20, 20, 20, 3, 20, 20, 9, 9, 9, 9, 4, 20],
        "height": [32] * 11 + [16],
        "width": [64] * 10 + [48, 24],
        "prologue_or_epilogue": ["prologue"] + [None] * 11,
        "rejected_by": [[], ["text"], ["text", "still"]] + [[]] * 9,
    }
    path = tmp_path / "index" / "train.parquet"
    table = pq.read_table(path)
    for name, values in {**columns, "frames": columns["clean_end"]}.items():
        where = table.schema.get_field_index(name)
        table = table.set_column(where, name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, path)
    return tmp_path


def test_every_shot_is_in_a_bucket_or_has_a_reason(directory):
    report = explain(directory, CLIPS, global_batch=2)
    assert {one.bucket: one.samples for one in report.buckets} == {
        "5x32x48@8": 5,
        "5x32x32@8": 0,
        "17x32x48@8": 3,
        "17x32x32@8": 0,
    }
    assert report.left_out == {"prologue or epilogue": 1, "rejected by a rule (still 1, text 2)": 2, "too short": 1}
    assert report.samples + sum(report.left_out.values()) == report.shots == 12
    json.dumps(report.as_dict())


def test_what_is_lost_enlarged_repeated_and_paid_for_is_told(directory):
    five, _, seventeen, _ = explain(directory, CLIPS, batch_tokens=40, multiple=2, token=(4, 16, 16)).buckets
    assert (five.tokens, five.batch, five.tokens_a_step, five.steps, five.repeated) == (12, 2, 24, 3, 1)
    assert (seventeen.tokens, seventeen.batch, seventeen.steps, seventeen.repeated) == (30, 2, 2, 1)
    assert five.cropped == pytest.approx(4 / 5 * (1 - 48 / 64), abs=1e-4)  # 64 x 32 to 48 x 32; one fits as it is
    assert (five.held, five.hurried) == (1, 0)
    assert five.frames_used == pytest.approx((4 * 5 / 9 + 1) / 5, abs=1e-4)
    assert (seventeen.enlarged, seventeen.largest_scale) == (1, 2.0)
    told = explain(directory, CLIPS, batch_tokens=40, multiple=2)
    assert "more than batch_tokens (40)" in " ".join(told.warnings)


def test_the_text_shows_buckets_reasons_and_an_epoch(directory):
    text = explain(directory, CLIPS, global_batch=2).text()
    assert "ShotStream" in text
    assert "2  rejected by a rule (still 1, text 2)" in text
    assert "without samples: 5x32x32@8, 17x32x32@8" in text
    assert "5 steps an epoch" in text
    assert "2 samples (25.0%) repeated" in text


def test_conditions_and_sequences_tell_what_they_leave_out(directory):
    report = explain(directory, CLIPS, stream=StoryStream, n=3, global_batch=1, where=["frames<=19"])
    assert report.left_out == {"conditions not met (frames<=19.0)": 6, "too short": 1}
    assert report.samples == 3
    apart = explain(directory, CLIPS, stream=StoryStream, n=5, global_batch=1, where=["position!=6"])
    assert apart.left_out["conditions not met (position!=6.0)"] == 1
    assert apart.left_out["in no sequence of 5 shots"] == 2  # 4 and 5; 7 to 11 make one


def test_samples_without_reference_are_counted(tmp_path):
    write_dataset(tmp_path / "d", videos=1, shots=5, lonely=True)
    report = explain(tmp_path / "d", ClipSpec(5, 32, 48, 4), global_batch=2, require_reference=True)
    assert report.samples_left_out == {"without any reference image": 1}
    assert report.samples == 4
    with pytest.raises(DataError, match="nothing to train on"):
        explain(tmp_path / "d", ClipSpec(5, 32, 48, 4, min_frames=99), global_batch=2)


def test_keys_name_the_bucket_or_the_reason_of_every_shot(directory):
    stream, _ = open_for_report(directory, CLIPS, stream=ShotStream, global_batch=2)
    told = dict(keys(stream))
    assert len(told) == 12
    assert told["s0-0"] == "left out: prologue or epilogue"
    assert told["s0-2"] == "left out: rejected by text, still"
    assert told["s0-3"] == "left out: too short"
    assert told["s0-4"] == "17x32x48@8"
    assert np.unique([told[f"s0-{number}"] for number in (6, 7, 8, 9, 10)]).tolist() == ["5x32x48@8"]
