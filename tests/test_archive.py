"""The archive: complete, described, the same every time, and enough to render from."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from datetime import UTC, datetime

import pytest
from conftest import SET_TINY, make_record, tiny_conditions, write_records

from cifarlib import cli
from cifarlib.errors import ConfigError
from cifarlib.report import archive, difference
from cifarlib.runs import other_studies
from cifarlib.runs.store import RecordStore

CHAPTER = "stage3"


@pytest.fixture(scope="module")
def build(report, tmp_path_factory):
    """The report's build folder, with a run of the second study that is not the paper's."""
    folder = shutil.copytree(report, tmp_path_factory.mktemp("archive") / "build")
    RecordStore(folder).write(make_record(beyond(folder)))
    return folder


def beyond(folder):
    return other_studies.open_others("smoke", [], folder)["beyond"].conditions[1]


@pytest.fixture(scope="module")
def packed(build, tmp_path_factory):
    return archive.export("smoke", [], build, tmp_path_factory.mktemp("to") / "study.zip")


@pytest.fixture(scope="module")
def unpacked(packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    with zipfile.ZipFile(packed) as file:
        file.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def crate(unpacked):
    """Entities of the description by id."""
    content = json.loads((unpacked / archive.METADATA).read_text(encoding="utf-8"))
    return {entity["@id"]: entity for entity in content["@graph"]}


def test_a_damaged_record_of_another_study_is_not_left_out_silently(build, tmp_path):
    folder = shutil.copytree(build, tmp_path / "build")
    path = RecordStore(folder).run_path(beyond(folder).run_id)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match="sets it aside, then export again"):
        archive.export("smoke", [], folder, tmp_path / "study.zip")
    assert not (tmp_path / "study.zip").exists()


def test_the_same_content_gives_the_same_bytes(build, packed, tmp_path, capsys):
    target = tmp_path / "again.zip"
    assert cli.main(["export", "--scale", "smoke", "--out", str(build), "--to", str(target)]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert target.read_bytes() == packed.read_bytes()
    records, _ = RecordStore(build).read_runs(RecordStore(build).run_ids())
    last = max(datetime.fromisoformat(r.provenance.finished) for r in records.values())
    year, *rest, second = last.astimezone(UTC).timetuple()[:6]
    with zipfile.ZipFile(packed) as file:
        dates = {entry.date_time for entry in file.infolist()}
        assert dates == {(year, *rest, second // 2 * 2)}  # as zip has seconds
        assert file.testzip() is None


def list_files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_records_program_and_parameters_are_in_it_and_nothing_else(build, unpacked):
    assert (build / "runs" / f"{beyond(build).run_id}.json").is_file()
    for path in (build / "runs").iterdir():
        assert (unpacked / "build/smoke/runs" / path.name).read_bytes() == path.read_bytes()
    names = list_files(unpacked)
    assert names > {
        "pyproject.toml", "constraints.txt", "environment.yml", "LICENSE", "README.md",
        "README-project.md", "params/study.yaml", "params/published/claims.yaml", "cifarlib/cli.py",
        "cifarlib/templates/report/index.html.j2", "params/smoke.yaml", "notebooks/01_data.ipynb",
        "build/smoke/report.html", "build/smoke/report.pdf",
    }  # fmt: skip
    others = re.compile(r"__pycache__|\.pyc$|/state/|^data/|^tests/|^\.git")
    assert not [name for name in names if others.search(name)]


def test_the_description_is_a_crate_of_every_file(unpacked, crate):
    descriptor, root = crate[archive.METADATA], crate["./"]
    assert descriptor["about"] == {"@id": "./"}
    assert descriptor["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    assert {"name", "description", "datePublished", "license"} <= root.keys()
    files = {name: entity for name, entity in crate.items() if entity["@type"] == "File"}
    assert set(files) == list_files(unpacked) - {archive.METADATA}
    assert {"@id": "README.md"} in root["hasPart"]
    for name, entity in files.items():
        content = (unpacked / name).read_bytes()
        assert entity["contentSize"] == str(len(content))
        assert entity["sha256"] == hashlib.sha256(content).hexdigest()
    named = set(re.findall(r'\{"@id": "([^"]+)"\}', json.dumps([*crate.values()])))
    assert named - crate.keys() == {"https://w3id.org/ro/crate/1.1"}


def test_software_that_made_the_records_is_named(crate):
    software = [e for e in crate.values() if e["@type"] == "SoftwareApplication"]
    assert {"torch", "python", "cifarlib"} <= {entity["name"] for entity in software}
    training = crate["#training"]
    assert {i["@id"] for i in training["instrument"]} == {entity["@id"] for entity in software}
    assert crate["build/smoke/runs/"]["hasPart"]


def test_a_stranger_renders_the_same_tables(build, unpacked):
    readme = (unpacked / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```sh\n(.*?)```", readme, re.DOTALL)[1].splitlines()
    assert len(block) == 2
    program, *options = shlex.split(block[1])
    assert program == ".venv/bin/cifarlib"
    done = subprocess.run(
        [sys.executable, "-m", "cifarlib", *options, "--only", CHAPTER],
        cwd=unpacked,
        env=os.environ | {"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    there = difference.read(unpacked / f"build/smoke/report-{CHAPTER}.html").tables
    here = difference.read(build / "report.html").tables
    assert "XV" in there
    assert all(here[number] == table for number, table in there.items())


@pytest.mark.parametrize(
    ("recorded", "options", "told"),
    [(0, [], "holds no record to archive"), (1, ["--to", "study.tar"], ".zip")],
)
def test_what_cannot_be_packed_is_refused(tmp_path, capsys, recorded, options, told):
    write_records(RecordStore(tmp_path), tiny_conditions()[:recorded])
    assert cli.main(["export", *SET_TINY, "--out", str(tmp_path), *options]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert len(said.splitlines()) == 1


def test_a_scale_of_ones_own_is_in_the_archive(tmp_path):
    scale = tmp_path / "mine.yaml"
    text = (archive.paths.PARAMS / "smoke.yaml").read_text(encoding="utf-8")
    scale.write_text(text.replace("train_size: 200", "train_size: 100"), encoding="utf-8")
    conditions = archive.open_results(str(scale), [], tmp_path).conditions
    RecordStore(tmp_path).write(make_record(conditions[0]))
    with zipfile.ZipFile(archive.export(str(scale), [], tmp_path)) as file:
        assert file.read("params/mine.yaml") == scale.read_bytes()
        assert f"build/mine/runs/{conditions[0].run_id}.json" in file.namelist()
        assert "cifarlib report --scale mine\n" in file.read("README.md").decode()
