"""Ids and digests of all committed records, worked out again from the raw JSON alone.

The rules stand here a second time, in the standard library's words and with nothing of the
package: whatever becomes of it, these files keep their names, and it reads them.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cifarlib.runs.schema import DataRecord, NetworkRecord, RunRecord
from cifarlib.runs.store import decode, encode

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = sorted([*ROOT.glob("build/*/runs"), ROOT / "tests" / "records"])
FILES = [file for folder in FOLDERS for file in sorted(folder.glob("[!.]*.json"))]
RUNS = [file for file in FILES if "-" not in file.stem]

# Fields that runs had before they were written down, with the value that they had: a run's id
# leaves them out where they have it.
LATER = {
    "augmentation.padding_mode": "black",
    "augmentation.alternating_flip": False,
    "augmentation.cutout": 0,
    "model.last_layer_scale": 1.0,
    "model.branch_scale": 1.0,
    "model.whitening": None,
    "model.batch_norm_momentum": 0.1,
    "optimizer.nesterov": False,  # of SGD; Muon had it from the first
    "optimizer.rest.nesterov": False,
    "label_smoothing": 0.0,
    "decayed": "all",
    "average": None,
    "evaluation.flip_averaged": False,
    "model.partial_identity": False,
    "batch_norm_bias_factor": 1.0,
    "average.lookahead": False,
    "progressive_dropping": 0.0,
    "evaluation.crop_averaged": False,
}


def digest_of(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    muon = config.get("name") == "muon"
    kept = {}
    for key, value in config.items():
        place = prefix + key
        left_out = place in LATER and value == LATER[place] and not (muon and key == "nesterov")
        if isinstance(value, dict):
            kept[key] = canonical(value, f"{place}.")
        elif not left_out:
            kept[key] = value
    return kept


def test_there_are_records_to_check():
    assert {file.parent.name for file in RUNS} >= {"records"}
    assert len(RUNS) >= 4


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_digests_and_ids_follow_from_the_raw_json(folder):
    for file in (file for file in FILES if file.parent == folder):
        content = json.loads(file.read_text(encoding="utf-8"))
        assert digest_of({k: v for k, v in content.items() if k != "digest"}) == content["digest"]
        if file in RUNS:
            key = {
                "config": canonical(content["config"]),
                "data": content["data_fingerprint"],
                "engine": content["engine"],
            }
            assert digest_of(key)[:16] == content["run_id"] == file.stem


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_the_package_reads_each_record_and_writes_the_same_configuration(folder):
    for file in (file for file in FILES if file.parent == folder):
        content = json.loads(file.read_text(encoding="utf-8"))
        kind = {"data": DataRecord, "network": NetworkRecord}.get(file.stem.split("-")[0])
        if kind is None and file not in RUNS:
            continue  # what another module reads
        record = decode(kind or RunRecord, file.read_bytes(), file.name)
        again = json.loads(encode(record))
        if file in RUNS:
            assert canonical(again["config"]) == canonical(content["config"])
            again["config"] = content["config"]
        missing = {"digest", "timing", "provenance", "result"}  # newer fields may be added to these
        for key in content.keys() - missing:
            assert again[key] == content[key]
        for part in missing & content.keys() - {"digest"}:
            assert content[part].items() <= again[part].items()
