"""What a report shows, against what it showed when it was frozen: every number, nothing else.

    python tests/golden/compare.py                  render the frozen records, then compare
    python tests/golden/compare.py BUILD            compare a build folder's executed notebooks
    python tests/golden/compare.py BUILD --record   freeze what they show

Tables meet by number, columns by name, rows by place; of a cell, a caption or an alternative text
only the numbers count. Verdicts are words, in a section of their own.
"""

import argparse
import json
import re
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RECORDS = FOLDER / "smoke-records.tar.xz"
FROZEN = FOLDER / "shown.json"

CONTENT = "application/vnd.cifarlib.shown+json"
VERDICT = "verdict"  # a column of this name holds words that are compared

# A number stands alone: the digits of names (DAA-1, stage1, ResNet-18) are words.
NUMBER = re.compile(
    r"(?<![\w.])(?<![A-Za-z][-‑])"
    r"(?:(?<![\w)][-−+])[-−+])?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?(?![\w]*[A-Za-z]\d)"
)


def extract(build: Path) -> dict[str, Any]:
    """Every table, figure and computed sentence of a build folder's executed notebooks."""
    notebooks = sorted((build / "notebooks").glob("*.ipynb"))
    if not notebooks:
        sys.exit(f"{build}/notebooks holds no executed notebook; render the report first")
    shown: dict[str, Any] = {"tables": {}, "figures": {}, "sentences": {}, "verdicts": {}}
    for path in notebooks:
        said: list[str] = []
        for bundle in bundles(json.loads(path.read_text(encoding="utf-8"))):
            content = bundle.get(CONTENT)
            if content is None:
                said.append("".join(bundle.get("text/plain", "")))
            elif content["kind"] == "table":
                add_table(shown, content)
            elif content["kind"] == "figure":
                shown["figures"][content["number"]] = {
                    "drawn": content["drawn"],
                    "text": [content["title"], content["alt"], content["note"]],
                }
        shown["sentences"][path.stem] = said
    return shown


def bundles(notebook: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if output["output_type"] in ("display_data", "execute_result"):
                yield output["data"]


def add_table(shown: dict[str, Any], content: dict[str, Any]) -> None:
    columns = [", ".join(part for part in names if part) for names in content["columns"]]
    shown["tables"][content["number"]] = {
        "columns": columns,
        "rows": content["rows"],
        "text": [content["title"], content["note"]],
    }
    for place, name in enumerate(columns):
        if name.lower() == VERDICT:
            verdicts = {row[0]: row[place] for row in content["rows"]}
            shown["verdicts"][content["number"]] = verdicts


def numbers(text: str) -> list[float]:
    """The numbers in a text, in their order."""
    return [
        float(found.group().replace(",", "").replace("−", "-")) for found in NUMBER.finditer(text)
    ]


Difference = tuple[str, str]  # place, what differs there


def compare(frozen: dict[str, Any], shown: dict[str, Any]) -> list[Difference]:
    """Places where numbers differ."""
    found: list[Difference] = []
    for kind, one in (("table", compare_tables), ("figure", compare_figures)):
        old, new = frozen[f"{kind}s"], shown[f"{kind}s"]
        for number in old | new:
            place = f"{kind} {number}"
            if number not in new:
                found.append((place, "is no longer shown"))
            elif number not in old:
                found.append((place, "was not shown"))
            else:
                found += one(place, old[number], new[number])
    return [*found, *compare_sentences(frozen, shown), *compare_verdicts(frozen, shown)]


def compare_tables(place: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Difference]:
    yield from compare_texts(place, old, new)
    columns = old["columns"]
    for name in dict.fromkeys([*columns, *new["columns"]]):
        if name not in new["columns"]:
            yield f"{place}/{name}", "this column is no longer shown"
        elif name not in columns:
            yield f"{place}/{name}", "this column was not shown"
    if len(old["rows"]) != len(new["rows"]):
        yield place, f"has {len(new['rows'])} rows instead of {len(old['rows'])}"
    for row, (before, now) in enumerate(zip(old["rows"], new["rows"], strict=False), start=1):
        for name in columns:
            if name in new["columns"]:
                was, is_ = before[columns.index(name)], now[new["columns"].index(name)]
                if numbers(was) != numbers(is_):
                    yield f"{place}/{name}/row {row}", f"{was} → {is_}"


def compare_figures(place: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Difference]:
    if old["drawn"] != new["drawn"]:
        yield place, "is drawn now" if new["drawn"] else "is no longer drawn"
    yield from compare_texts(place, old, new)


def compare_texts(place: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[Difference]:
    """Title, alternative text and note together: a number may stand in either."""
    yield from compare_counts(f"{place}/text", old["text"], new["text"])


def compare_sentences(frozen: dict[str, Any], shown: dict[str, Any]) -> Iterator[Difference]:
    for chapter in frozen["sentences"] | shown["sentences"]:
        old, new = (part["sentences"].get(chapter, []) for part in (frozen, shown))
        yield from compare_counts(f"sentences {chapter}", old, new)


def compare_counts(place: str, old: list[str], new: list[str]) -> Iterator[Difference]:
    before, now = (Counter(n for text in texts for n in numbers(text)) for texts in (old, new))
    if lost := before - now:
        yield place, f"no longer says {in_words(lost)}"
    if gained := now - before:
        yield place, f"now says {in_words(gained)}"


def in_words(counts: Counter[float]) -> str:
    return ", ".join(f"{number:g}" for number in sorted(counts.elements()))


def compare_verdicts(frozen: dict[str, Any], shown: dict[str, Any]) -> Iterator[Difference]:
    for number, old in frozen["verdicts"].items():
        new = shown["verdicts"].get(number, {})
        for row in old | new:
            if old.get(row) != new.get(row):
                yield f"verdicts {number}/{row}", f"{old.get(row)} → {new.get(row)}"


def unpack(build: Path) -> None:
    """Put the frozen records into an empty folder."""
    with tarfile.open(RECORDS) as archive:
        archive.extractall(build / "runs", filter="data")


def find_differences(shown: dict[str, Any]) -> list[Difference]:
    """What differs from what was frozen."""
    return compare(json.loads(FROZEN.read_text(encoding="utf-8")), shown)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("build", nargs="?", type=Path, help="a build folder with its notebooks/")
    parser.add_argument("--record", action="store_true", help="freeze what it shows")
    options = parser.parse_args()
    if options.build:
        return finish(options, extract(options.build))
    with tempfile.TemporaryDirectory() as folder:
        from cifarlib.report import assembly as report

        unpack(Path(folder))
        report.render("smoke", build=folder)
        return finish(options, extract(Path(folder)))


def finish(options: argparse.Namespace, shown: dict[str, Any]) -> int:
    if options.record:
        text = json.dumps(shown, ensure_ascii=False, indent=1, sort_keys=True)
        FROZEN.write_text(text + "\n", encoding="utf-8")
        return 0
    differences = find_differences(shown)
    for place, what in differences:
        print(f"{place}: {what}")
    print(f"{len(differences)} differences")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
