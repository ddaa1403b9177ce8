"""The archive: a study's records and all that renders them again, in one RO-Crate zip.

A stranger unpacks it and gets the same report with two commands, which its README names. The layout
is that of the checkout. ``ro-crate-metadata.json`` describes every file (RO-Crate 1.1). The same
content gives the same bytes: every file is dated by the last record.
"""

import hashlib
import io
import json
import mimetypes
import shlex
import zipfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cifarlib import __version__, paths
from cifarlib.bench import measurements
from cifarlib.config import DATASETS
from cifarlib.errors import ConfigError
from cifarlib.report import name_records, name_suffix
from cifarlib.runs import further, provenance
from cifarlib.runs.results import Results, open_results
from cifarlib.runs.shift import read_shifts, shift_path
from cifarlib.runs.store import encode, write_atomically
from cifarlib.study import KEPT, kept_studies

METADATA = "ro-crate-metadata.json"
PROFILE = "https://w3id.org/ro/crate/1.1"
LICENCE = "https://spdx.org/licenses/MIT"
NEVER = datetime(1980, 1, 1, tzinfo=UTC)  # the first day of zip; where nothing is recorded

TITLE = "What decides the accuracy of a small residual network on CIFAR-10? Records and report"
PROJECT = ("pyproject.toml", "constraints.txt", "environment.yml", "LICENSE")
TYPES = {
    ".ipynb": "application/x-ipynb+json",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".toml": "application/toml",
    ".j2": "text/x-jinja2",
    ".typ": "text/x-typst",
    ".lua": "text/x-lua",
    ".md": "text/markdown",
    ".py": "text/x-python",
}
DATASET_PAGES = {"cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html"}

Files = dict[str, bytes]


def export(
    scale: str,
    overrides: Sequence[str] = (),
    build: str | Path = "",
    to: Path | None = None,
) -> Path:
    """Write a study's archive; where it stands.

    ``to`` is ``cifarlib-<scale>.zip`` in the build folder unless it is given. Recorded runs of
    further studies are in it, for the report shows them; executed notebooks and reports, if the
    build folder has them. Raises ``ConfigError`` for a name that
    does not end in .zip, and where nothing is recorded.
    """
    results = open_results(scale, overrides, build)
    target = to or results.store.folder / f"cifarlib-{results.scale_name}.zip"
    if target.suffix != ".zip":
        raise ConfigError(f"--to {target}: an archive is a zip; let the name end in .zip")
    if results.faults:
        raise ConfigError(
            f"{results.faults[0]}; a sweep sets it aside and makes it again, then export once more"
        )
    if not results.every_record:
        raise ConfigError(
            f"{results.store.runs} holds no record of this study to archive; make some with "
            "cifarlib sweep"
        )
    own = kept_studies(results.store.folder)
    others = further.narrow(further.open_further(scale, overrides, build, own), results)
    results = further.join(results, others)
    path = Path(scale) if scale.endswith((".yaml", ".yml")) else paths.PARAMS / f"{scale}.yaml"
    files = collect(results, path)
    files["README.md"] = _readme(results).encode()
    files[METADATA] = _to_json(describe(results, files))
    write_atomically(target, pack(files, last_record(results)))
    return target


# ---------------------------------------------------------------------------------------------
# What is in it
# ---------------------------------------------------------------------------------------------


def collect(results: Results, scale_file: Path) -> Files:
    """Path in the archive → content, of everything but its README and its description."""
    files: Files = {}
    for path in (*_project_files(), *_package_files()):
        files[path.relative_to(paths.ROOT).as_posix()] = path.read_bytes()
    commit, dirty = provenance.commit(provenance.REPORT)
    if commit and not dirty:  # an unpacked archive has no git to ask
        files[f"cifarlib/{provenance.ARCHIVED}"] = f"{commit}\n".encode()
    for name in measurements.DEVICES:
        measurements.read_bench(name)  # damaged ones are named here, not by whoever unpacks them
    if (paths.ROOT / "README.md").is_file():
        files["README-project.md"] = (paths.ROOT / "README.md").read_bytes()
    files[f"params/{scale_file.name}"] = scale_file.read_bytes()
    home = _home(results)
    for record in results.every_record.values():
        files[f"{home}/runs/{record.run_id}.json"] = encode(record)
    for shift in read_shifts(results).values():
        files[f"{home}/runs/{shift_path(results.store, shift.run_id).name}"] = encode(shift)
    if results.data:
        files[f"{home}/runs/{results.store.data_path(results.data.dataset).name}"] = encode(
            results.data
        )
    if results.network:
        files[f"{home}/runs/{results.store.network_path.name}"] = encode(results.network)
    for path in kept_studies(results.store.folder).values():
        files[f"{home}/{KEPT}/{path.name}"] = path.read_bytes()
    for path in _built(results.store.folder, name_suffix(results)):
        content = path.read_bytes()
        _refuse_damaged(path, content)
        files[f"{home}/{path.relative_to(results.store.folder).as_posix()}"] = content
    return files


def _refuse_damaged(path: Path, content: bytes) -> None:
    """Raise ``ConfigError`` for a page, PDF or notebook that is cut off or something else."""
    if path.suffix == ".html":
        whole = b"</html>" in content
    elif path.suffix == ".pdf":
        whole = content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")
    else:
        try:
            whole = isinstance(json.loads(content)["cells"], list)
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
    if not whole:
        raise ConfigError(f"{path} is damaged; make it again with cifarlib report, or remove it")


def _home(results: Results) -> str:
    """The build folder in the archive: where the commands look without ``--out``."""
    return f"build/{results.scale_name}"


def _project_files() -> Iterator[Path]:
    yield from (path for name in PROJECT if (path := paths.ROOT / name).is_file())
    yield from sorted(paths.PARAMS.rglob("*.yaml"))
    yield from sorted(paths.PARAMS.rglob("*.csv"))
    yield from sorted([*paths.NOTEBOOKS.glob("*.ipynb"), *paths.NOTEBOOKS.glob("*.yaml")])
    yield from sorted(paths.BENCH.glob("*.json"))  # the report shows it


def _package_files() -> Iterator[Path]:
    for path in sorted((paths.ROOT / "cifarlib").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
            yield path


def _built(folder: Path, suffix: str) -> Iterator[Path]:
    yield from sorted((folder / f"notebooks{suffix}").glob("*.ipynb"))
    for ending in ("html", "pdf"):
        if (path := folder / f"report{suffix}.{ending}").is_file():
            yield path


def last_record(results: Results) -> datetime:
    """When the last of a study's records was made, in UTC."""
    finished = [record.provenance.finished for record in results.every_record.values()]
    return max((datetime.fromisoformat(text).astimezone(UTC) for text in finished), default=NEVER)


def _commands(results: Results) -> tuple[str, str]:
    """To make the environment, and to render the report."""
    # In a folder that is named, the page of a changed scale has the name of any other.
    home = _home(results) if results.overrides else ""
    records = name_records(results.scale_name, results.overrides, home)
    return (
        "python3 -m venv .venv && .venv/bin/pip install --constraint constraints.txt --editable .",
        f".venv/bin/cifarlib report {records}",
    )


def _readme(results: Results) -> str:
    environment, report = _commands(results)
    program, _, *options = shlex.split(report)
    verification = shlex.join([program, "verify", *options])
    info = DATASETS[results.scale.data.name]
    return f"""\
# {TITLE}

{len(results.every_record)} runs at scale {results.scale_name}, on {info.title}; last record of
{last_record(results):%Y-%m-%d %H:%M} UTC. The images are not in here: the report needs none.

The report again, from the records, with Python 3.11 or newer:

```sh
{environment}
{report}
```

It then stands in `{_home(results)}/report.html`, beside `report.pdf`.

| where | what |
|---|---|
| `{_home(results)}/runs/` | the records: one JSON file for each run, with its digest |
| `{_home(results)}/` | report and executed notebooks, if they had been made when this was packed |
| `params/` | the study, its scales, and the paper's tables and claims |
| `notebooks/`, `cifarlib/` | the chapters of the report, and the program |
| `constraints.txt`, `environment.yml` | the versions it was tested with |
| `{METADATA}` | this archive described as an RO-Crate |

To train some of the runs again and compare them with their records, with the images at hand:
`{verification}`, after
`.venv/bin/pip install --constraint constraints.txt --editable '.[train]'`.
More in `README-project.md`. MIT licence.
"""


# ---------------------------------------------------------------------------------------------
# Its description
# ---------------------------------------------------------------------------------------------


def describe(results: Results, files: Files) -> dict[str, Any]:
    """RO-Crate 1.1 metadata of an archive: files, data set, software, and how the records came."""
    home = _home(results)
    date = last_record(results)
    entities = [_describe_file(name, content) for name, content in sorted(files.items())]
    folder = f"{home}/runs/"
    runs = {
        "@id": folder,
        "@type": "Dataset",
        "name": "Records of the runs",
        "description": f"{len(results.every_record)} training runs, one JSON file each.",
        "hasPart": [{"@id": name} for name in sorted(files) if name.startswith(folder)],
    }
    images, software = _describe_images(results), _describe_software(results)
    training = {
        "@id": "#training",
        "@type": "CreateAction",
        "name": "Training of the runs",
        "endTime": date.isoformat(),
        "instrument": [{"@id": entity["@id"]} for entity in software],
        "object": {"@id": images["@id"]},
        "result": {"@id": folder},
    }
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": TITLE,
        "description": "Records of a reproduction of a study of 115 conditions, and the program "
        "that renders its report from them.",
        "datePublished": date.isoformat(),
        "license": {"@id": LICENCE},
        "hasPart": [{"@id": folder}, *({"@id": e["@id"]} for e in entities)],
        "mentions": [{"@id": "#training"}, {"@id": images["@id"]}],
    }
    licence = {
        "@id": LICENCE,
        "@type": "CreativeWork",
        "name": "MIT License",
        "identifier": "MIT",
    }
    descriptor = {
        "@id": METADATA,
        "@type": "CreativeWork",
        "conformsTo": {"@id": PROFILE},
        "about": {"@id": "./"},
    }
    graph = [descriptor, root, licence, runs, training, images, *software, *entities]
    context = [f"{PROFILE}/context", {"sha256": "https://schema.org/sha256"}]
    return {"@context": context, "@graph": graph}


def _describe_file(name: str, content: bytes) -> dict[str, Any]:
    guessed = TYPES.get(Path(name).suffix) or mimetypes.guess_type(name)[0]
    return {
        "@id": name,
        "@type": "File",
        "name": Path(name).name,
        "contentSize": str(len(content)),
        "encodingFormat": guessed or "text/plain",
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _describe_images(results: Results) -> dict[str, Any]:
    name = results.scale.data.name
    info = DATASETS[name]
    return {
        "@id": DATASET_PAGES.get(name, f"#data-{name}"),
        "@type": "Dataset",
        "name": info.title,
        "identifier": f"fingerprint {info.fingerprint}",
        "description": "Not in this archive; known by the MD5 of each of its files.",
    }


def _describe_software(results: Results) -> list[dict[str, Any]]:
    """Each package in each version that made a record."""
    versions = {
        pair
        for record in results.every_record.values()
        for pair in record.provenance.versions.items()
    }
    return [
        {
            "@id": f"#{name}-{version}",
            "@type": "SoftwareApplication",
            "name": name,
            "softwareVersion": version,
        }
        for name, version in [("cifarlib", __version__), *sorted(versions)]
    ]


# ---------------------------------------------------------------------------------------------
# Packing
# ---------------------------------------------------------------------------------------------


def pack(files: Files, date: datetime) -> bytes:
    """A zip of files in the order of their names, each of one date: the same content, the same
    bytes."""
    buffer = io.BytesIO()
    moment = max(date, NEVER)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, moment.timetuple()[:6])
            entry.create_system = 3  # Unix, wherever it is packed
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()


def _to_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
