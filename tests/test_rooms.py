"""The rooms of the design: who may import whom, and that no package hides the dataset."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "animeshooter_records": set(),
    "animeshooter_dataset": {"animeshooter_records"},
    "streams": {"animeshooter_dataset", "animeshooter_records", "animeshooter_streams"},
    "animeshooter_streams": {"animeshooter_dataset", "animeshooter_records", "streams"},
    "curation": {"animeshooter_dataset", "animeshooter_records", "streams"},
    "model": set(),
    "benchmarks": {
        "animeshooter_dataset",
        "animeshooter_records",
        "animeshooter_streams",
        "curation",
        "model",
        "recipes",
        "streams",
    },
    "recipes": {"animeshooter_dataset", "animeshooter_streams", "curation", "model", "streams"},
}


def sources(room):
    path = ROOT / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_as_the_design_allows(room):
    for path in sources(room):
        ours = {name for name in imported(path) if name in ALLOWED} - {room}
        assert ours <= ALLOWED[room], f"{path.relative_to(ROOT)} imports {sorted(ours - ALLOWED[room])}"


def test_no_package_hides_the_dataset():
    assert not (ROOT / "animeshooter.py").exists()
    assert not (ROOT / "animeshooter" / "__init__.py").exists()


def test_the_command_line_answers_before_heavy_libraries_are_loaded():
    import subprocess

    code = "import sys, recipes.cli; print([m for m in ('torch', 'cv2', 'av', 'datasets', 'transformers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("room", ALLOWED)
def test_files_stay_of_a_size_one_reads_in_one_go(room):
    for path in sources(room):
        assert len(path.read_text().splitlines()) <= 520, path
