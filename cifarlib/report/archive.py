"""The archive: a study's records and all that renders them again, in one RO-Crate zip.

A stranger unpacks it and gets the same report with two commands, which its README names. The layout
is that of the checkout. ``ro-crate-metadata.json`` describes every file (RO-Crate 1.1). The same
content gives the same bytes: every file is dated by the last record.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cifarlib import __version__, paths
from cifarlib.bench import measurements
from cifarlib.checking import list_folder, parse_json
from cifarlib.config import DATASETS
from cifarlib.errors import ConfigError
from cifarlib.report.assembly import name_suffix
from cifarlib.runs import other_studies, provenance
from cifarlib.runs.cifar10_1 import read_shifts, shift_path
from cifarlib.runs.results import Results, name_records, open_results
from cifarlib.runs.store import write_atomically
from cifarlib.study import kept_studies

METADATA = "ro-crate-metadata.json"
LICENCE = "https://spdx.org/licenses/MIT"
NEVER = datetime(1980, 1, 1, tzinfo=UTC)  # the first day of zip; where nothing is recorded

TITLE = "What decides the accuracy of a small residual network on CIFAR-10? Records and report"
PROJECT = (
    "pyproject.toml", "constraints.txt", "environment.yml", "LICENSE", "README.md",
    "params/**/*.yaml", "params/**/*.csv", "notebooks/*.ipynb", "notebooks/*.yaml",
    "build/bench/*.json", "cifarlib/**/*",
)  # fmt: skip
TYPES = {  # not the system's: it would not be the same everywhere
    ".csv": "text/csv",
    ".html": "text/html",
    ".ipynb": "application/x-ipynb+json",
    ".json": "application/json",
    ".md": "text/markdown",
    ".pdf": "application/pdf",
    ".py": "text/x-python",
    ".yaml": "application/yaml",
}

Files = dict[str, bytes]


def export(
    scale: str,
    overrides: Sequence[str] = (),
    build: str | Path = "",
    to: Path | None = None,
) -> Path:
    """Write a study's archive; where it stands.

    ``to`` is ``cifarlib-<scale>.zip`` in the build folder unless it is given. Raises
    ``ConfigError`` for a name that does not end in .zip, and where nothing is recorded.
    """
    results = open_results(scale, overrides, build)
    target = to or results.store.folder / f"cifarlib-{results.scale_name}.zip"
    if target.suffix != ".zip":
        raise ConfigError(f"--to {target}: an archive is a zip; let the name end in .zip")
    if results.faults:
        raise ConfigError(
            f"{results.faults[0]}; a sweep sets it aside and makes it again, then export once more"
        )
    own = kept_studies(results.store.folder)
    others = other_studies.narrow(other_studies.open_others(scale, overrides, build, own), results)
    results = other_studies.join(results, others)
    if results.faults:
        raise ConfigError(
            f"{results.faults[0]}; a sweep of its study sets it aside, then export again"
        )
    if not results.every_record:
        raise results.nothing_recorded("archive")
    path = Path(scale) if scale.endswith((".yaml", ".yml")) else paths.PARAMS / f"{scale}.yaml"
    files = collect(results, path)
    files["README.md"] = _readme(results).encode()
    described = json.dumps(describe(results, files), indent=1, ensure_ascii=False)
    files[METADATA] = f"{described}\n".encode()
    write_atomically(target, pack(files, last_record(results)))
    return target


def collect(results: Results, scale_file: Path) -> Files:
    """Path in the archive → content, of everything but its README and its description."""
    store, suffix = results.store, name_suffix(results)
    for name in measurements.DEVICES:
        measurements.read_bench(name)  # damaged ones are named here, not by whoever unpacks them
    files = {
        path.relative_to(paths.ROOT).as_posix(): path.read_bytes()
        for pattern in PROJECT
        for path in paths.ROOT.glob(pattern)
        if path.is_file() and "__pycache__" not in path.parts and path.name[0] != "."
    }
    if readme := files.pop("README.md", None):
        files["README-project.md"] = readme
    commit, dirty = provenance.commit(provenance.REPORT)
    if commit and not dirty:  # an unpacked archive has no git to ask
        files[f"cifarlib/{provenance.ARCHIVED}"] = f"{commit}\n".encode()
    files[f"params/{scale_file.name}"] = scale_file.read_bytes()
    built = [store.run_path(run) for run in results.every_record]
    built += [shift_path(store, run) for run in read_shifts(results)]
    built += [store.data_path(results.data.dataset)] if results.data else []
    built += [store.network_path] if results.network else []
    built += kept_studies(store.folder).values()
    rendered = list_folder(store.folder / f"notebooks{suffix}", ".ipynb")
    rendered += [store.folder / f"report{suffix}.{ending}" for ending in ("html", "pdf")]
    for path in [*built, *filter(Path.is_file, rendered)]:
        content = path.read_bytes()
        if path in rendered and not _is_whole(path.suffix, content):
            raise ConfigError(
                f"{path} is damaged; make it again with cifarlib report, or remove it"
            )
        files[f"{_home(results)}/{path.relative_to(store.folder).as_posix()}"] = content
    own = results.own_budget  # on which claims about absolute numbers are judged
    for run in own.every_record if own is not results else ():
        path = own.store.run_path(run)
        files[f"{_home(own)}/{path.relative_to(own.store.folder).as_posix()}"] = path.read_bytes()
    return files


def _is_whole(ending: str, content: bytes) -> bool:
    """Whether a page, a PDF or a notebook is not cut off or something else."""
    if ending == ".html":
        return b"</html>" in content
    if ending == ".pdf":
        return content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")
    try:
        return isinstance(parse_json(content)["cells"], list)
    except (ValueError, KeyError, TypeError):
        return False


def _home(results: Results) -> str:
    """The build folder in the archive: where the commands look without ``--out``."""
    return f"build/{results.scale_name}"


def last_record(results: Results) -> datetime:
    """When the last of a study's records was made, in UTC."""
    finished = [record.provenance.finished for record in results.every_record.values()]
    return max((datetime.fromisoformat(text).astimezone(UTC) for text in finished), default=NEVER)


def _readme(results: Results) -> str:
    # In a folder that is named, the page of a changed scale has the name of any other.
    home = _home(results) if results.overrides else ""
    records = name_records(results.scale_name, results.overrides, home)
    info = DATASETS[results.scale.data.name]
    return f"""\
# {TITLE}

{len(results.every_record)} runs at scale {results.scale_name}, on {info.title}; last record of
{last_record(results):%Y-%m-%d %H:%M} UTC. The images are not in here: the report needs none.

The report again, from the records, with Python 3.11 or newer:

```sh
python3 -m venv .venv && .venv/bin/pip install --constraint constraints.txt --editable .
.venv/bin/cifarlib report {records}
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
`.venv/bin/cifarlib verify {records}`, after
`.venv/bin/pip install --constraint constraints.txt --editable '.[train]'`.
More in `README-project.md`. MIT licence.
"""


def describe(results: Results, files: Files) -> dict[str, Any]:
    """RO-Crate 1.1 metadata of an archive: files, data set, software, and how the records came."""
    from rocrate.model import ContextEntity, SoftwareApplication
    from rocrate.rocrate import ROCrate  # here, for it takes half a second to import

    crate, home = ROCrate(version="1.1"), f"{_home(results)}/runs"
    date, info = last_record(results).isoformat(), DATASETS[results.scale.data.name]

    def add(place: str, kind: str, **properties: Any) -> Any:
        return crate.add(ContextEntity(crate, place, {"@type": kind} | properties))

    crate.metadata.extra_terms["sha256"] = "https://schema.org/sha256"
    crate.name = TITLE
    crate.description = (
        "Records of a reproduction of a study of 115 conditions, and the program that renders its "
        "report from them."
    )
    crate.license = add(LICENCE, "CreativeWork", name="MIT License", identifier="MIT")
    described = {}
    for name, content in sorted(files.items()):
        properties = {
            "name": Path(name).name,
            "contentSize": str(len(content)),
            "encodingFormat": TYPES.get(Path(name).suffix, "text/plain"),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        described[name] = crate.add_file(None, name, properties=properties)
    made = [record.provenance.versions.items() for record in results.every_record.values()]
    runs = {
        "name": "Records of the runs",
        "description": f"{len(made)} training runs, one JSON file each.",
        "hasPart": [file for name, file in described.items() if name.startswith(f"{home}/")],
    }
    images = add("#images", "Dataset", name=info.title, identifier=info.fingerprint)
    software = [
        crate.add(SoftwareApplication(crate, f"#{n}-{v}", {"name": n, "softwareVersion": v}))
        for n, v in [("cifarlib", __version__), *sorted({pair for one in made for pair in one})]
    ]
    training = add(
        "#training",
        "CreateAction",
        name="Training of the runs",
        endTime=date,
        instrument=software,
        object=images,  # which are not in the archive
        result=crate.add_dataset(None, home, properties=runs),
    )
    crate.root_dataset["datePublished"] = date
    crate.root_dataset["mentions"] = [training, images]
    return crate.metadata.generate()


def pack(files: Files, date: datetime) -> bytes:
    """A zip of files in the order of their names, each of one date: the same content, the same
    bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, max(date, NEVER).timetuple()[:6])
            entry.create_system = 3  # Unix, wherever it is packed
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
