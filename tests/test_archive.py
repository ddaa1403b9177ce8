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
from bs4 import BeautifulSoup
from conftest import SET_TINY, make_record, tiny_conditions

from cifarlib import cli
from cifarlib.report import archive
from cifarlib.runs import further
from cifarlib.runs.store import RecordStore

CHAPTER = "stage3"


@pytest.fixture(scope="module")
def build(report, tmp_path_factory):
    """The report's build folder, with a run of the further study that is none of the paper's."""
    folder = shutil.copytree(report, tmp_path_factory.mktemp("archive") / "build")
    RecordStore(folder).write(make_record(beyond(folder)))
    return folder


def beyond(folder):
    return further.open_further("smoke", [], folder)["beyond"].conditions[1]


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


def test_the_same_content_gives_the_same_bytes(build, packed, tmp_path, capsys):
    target = tmp_path / "again.zip"
    assert cli.main(["export", "--scale", "smoke", "--out", str(build), "--to", str(target)]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert target.read_bytes() == packed.read_bytes()


def test_every_file_is_dated_by_the_last_record(build, packed):
    records, _ = RecordStore(build).read_runs(RecordStore(build).run_ids())
    last = max(datetime.fromisoformat(r.provenance.finished) for r in records.values())
    year, *rest, second = last.astimezone(UTC).timetuple()[:6]
    with zipfile.ZipFile(packed) as file:
        dates = {entry.date_time for entry in file.infolist()}
        assert dates == {(year, *rest, second // 2 * 2)}  # as zip has seconds
        assert file.testzip() is None


def test_records_program_and_parameters_are_in_it(build, unpacked):
    assert (build / "runs" / f"{beyond(build).run_id}.json").is_file()
    for path in (build / "runs").iterdir():
        assert (unpacked / "build/smoke/runs" / path.name).read_bytes() == path.read_bytes()
    names = ["pyproject.toml", "constraints.txt", "environment.yml", "LICENSE", "README.md"]
    names += ["README-project.md", "params/study.yaml", "params/published/claims.yaml"]
    names += ["cifarlib/cli.py", "cifarlib/templates/report/index.html.j2", "params/smoke.yaml"]
    for name in names:
        assert (unpacked / name).is_file(), name
    assert list((unpacked / "notebooks").glob("0*_*.ipynb"))


def test_nothing_else_is_in_it(unpacked):
    names = [
        path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()
    ]
    assert not [name for name in names if re.search(r"__pycache__|\.pyc$|\.verified|/state/", name)]
    assert not [name for name in names if name.startswith(("data/", "tests/", ".git"))]


def test_the_description_is_a_crate_of_every_file(unpacked, crate):
    descriptor, root = crate[archive.METADATA], crate["./"]
    assert descriptor["about"] == {"@id": "./"}
    assert descriptor["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    assert {"name", "description", "datePublished", "license"} <= root.keys()
    assert "author" not in root
    names = {p.relative_to(unpacked).as_posix() for p in unpacked.rglob("*") if p.is_file()}
    files = {name: entity for name, entity in crate.items() if entity["@type"] == "File"}
    assert set(files) == names - {archive.METADATA}
    assert {"@id": "README.md"} in root["hasPart"]
    for name, entity in files.items():
        content = (unpacked / name).read_bytes()
        assert entity["contentSize"] == str(len(content))
        assert entity["sha256"] == hashlib.sha256(content).hexdigest()


def test_whatever_the_description_names_it_describes(crate):
    def references(value):
        if isinstance(value, dict):
            if set(value) == {"@id"}:
                yield value["@id"]
            for inner in value.values():
                yield from references(inner)
        if isinstance(value, list):
            for inner in value:
                yield from references(inner)

    named = {name for entity in crate.values() for name in references(entity)}
    assert named - crate.keys() == {archive.PROFILE}


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
        [sys.executable, "-m", "cifarlib.cli", *options, "--only", CHAPTER],
        cwd=unpacked,
        env=os.environ | {"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    there = read_cells(unpacked / f"build/smoke/report-{CHAPTER}.html")
    here = read_cells(build / "report.html")
    assert "table-XV" in there
    assert all(here[number] == cells for number, cells in there.items())


def read_cells(page):
    """Number → cells of the tables on a page."""
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    tables = soup.select("figure.table[id]")
    return {table["id"]: [cell.get_text() for cell in table.select("td")] for table in tables}


@pytest.mark.parametrize(
    ("recorded", "options", "told"),
    [(0, [], "holds no record of this study to archive"), (1, ["--to", "study.tar"], ".zip")],
)
def test_what_cannot_be_packed_is_refused(tmp_path, capsys, recorded, options, told):
    for condition in tiny_conditions()[:recorded]:
        RecordStore(tmp_path).write(make_record(condition))
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
