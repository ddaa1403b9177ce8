"""Grids of one's own: made, kept as studies, known by name, trained, shown as a chapter."""

import numpy as np
import pytest
from chapters import CIFAR10, run_chapter
from conftest import SET_TINY, TINY, make_data_record, tiny_store, write_records

import cifarlib as cl
from cifarlib import cli, explore
from cifarlib.errors import ConfigError
from cifarlib.report import archive
from cifarlib.runs import grids
from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore
from cifarlib.study import kept_studies

START = "stage1-daa1/13"
NAME = "stage1-daa1-13-by-dropout-learning_rate"
GRID = {"dropout": [0.0, 0.3], "learning_rate": [0.001, 0.003, 0.01]}


@pytest.fixture
def results(tmp_path):
    tiny_store(tmp_path)
    return open_results("smoke", TINY, tmp_path)


def settings_of(opened) -> list[tuple]:
    return [(c.config.dropout, c.config.learning_rate, c.config.seed) for c in opened.conditions]


def test_a_grid_has_every_combination_beside_its_start(results):
    assert grids.make_grid(results, START, GRID, seeds=[42, 43]) == NAME
    opened = open_results("smoke", TINY, results.store.folder, NAME)
    start = results.select("stage1-daa1", run=13)[0]
    assert opened.conditions[0].run_id == start.run_id
    assert settings_of(opened)[2:] == [
        (dropout, rate, seed) for dropout in (0.0, 0.3) for rate in (0.001, 0.003, 0.01)
        for seed in (42, 43)
    ]  # fmt: skip
    same = [c for c in opened.conditions[2:] if c.config == start.config]
    assert [c.run_id for c in same] == [start.run_id]  # which is not trained twice


@pytest.mark.parametrize("seeds", [0, np.array([0])])
def test_a_grid_of_one_seed_may_have_the_seed_0(results, seeds):
    opened = grids.open_study(results, grids.make_grid(results, START, {"dropout": [0.3]}, seeds))
    assert {c.config.seed for c in opened.conditions} == {0}


def test_a_grid_of_a_stage_with_settings_for_a_scale_has_them(tmp_path):
    results = open_results("lite", (), tmp_path, "beyond")
    base = results.select("recipe-30")[0]
    name = grids.make_grid(results, base.name, {"dropout": [0.0, 0.1]})
    found = open_results("lite", (), tmp_path, name).conditions
    assert found[0].run_id == base.run_id
    assert {c.config.epochs for c in found} == {30}


def test_epochs_that_a_scale_does_not_know_stand_for_themselves(results):
    name = grids.make_grid(results, START, {"epochs": [1, 7]})
    opened = open_results("smoke", TINY, results.store.folder, name)
    assert [c.config.epochs for c in opened.conditions] == [1, 1, 7]
    with pytest.raises(ConfigError, match="at scale smoke epochs=30 becomes 1; give the number"):
        grids.make_grid(results, START, {"epochs": [1, 30]})


def test_settings_whose_values_are_lists_are_shown_as_text(results):
    values = {"schedule": ["multi_step"], "schedule.milestones": [[0.3], [0.6, 0.8]]}
    name = grids.make_grid(results, START, values)
    conditions = open_results("smoke", TINY, results.store.folder, name).conditions
    write_records(results.store, conditions)
    opened = open_results("smoke", TINY, results.store.folder, name)
    assert set(opened.runs["schedule_milestones"].dropna()) == {"[0.3]", "[0.6, 0.8]"}
    assert explore.linked(opened).to_dict()["datasets"]["runs"]
    shown = run_chapter("09_own.ipynb", results.store.folder, overrides=TINY, study=name)
    best, *_ = shown.tables.values()
    assert {cell for row in best["rows"] for cell in row} >= {"[0.3]", "[0.6, 0.8]"}


def test_a_setting_that_a_scale_says_can_be_varied(results):
    name = grids.make_grid(results, START, {"precision": ["fp32", "bf16"], "data.train_size": [30]})
    opened = open_results("smoke", TINY, results.store.folder, name)
    assert [c.config.precision for c in opened.conditions] == ["fp32", "fp32", "bf16"]
    assert [c.config.data.train_size for c in opened.conditions] == [20, 30, 30]


def test_an_equal_grid_is_kept_once_and_another_beside_it(results):
    for values in ([0.1], [0.1], [0.2]):
        grids.make_grid(results, START, {"dropout": np.array(values)})
    names = {"stage1-daa1-13-by-dropout", "stage1-daa1-13-by-dropout-2"}
    assert kept_studies(results.store.folder).keys() == names


def test_no_study_is_kept_in_the_place_of_another(results):
    for _ in range(2):
        grids.make_grid(results, START, {"dropout": [0.1]}, name="mine")
    (path,) = kept_studies(results.store.folder).values()
    path.write_text(f"{path.read_text()}# changed by hand\n")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="holds another study; choose another name, or remove"):
        grids.make_grid(results, START, {"dropout": [0.1]}, name="mine")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"dropout": {0.1, 0.2}},
            "cannot be a setting; write numbers and texts, several as a list",
        ),
        ({"dropout": (p for p in (0, 0.1))}, "cannot be a setting"),
        ({"dropout": [0.1], "seeds": {1, 2}}, "cannot be a setting"),
        ({"dropout": [0.1], "seeds": [42, "x"]}, "seeds: 'x' is none; write whole numbers"),
        ({"dropout": [0.1], "seeds": 2**32}, "seeds: 4294967296 is none; write whole numbers"),
        ({"dropout": [0.1], "name": 3}, "name is 3; write a text"),
        ({"epochs": [0]}, "epochs=0: epochs = 0 is not valid: input should be greater than or"),
    ],
)
def test_a_grid_in_a_cell_that_cannot_be_gets_one_sentence(results, given, said):
    with pytest.raises(ConfigError, match=said):
        cl.grid(START, results, **given)
    assert not kept_studies(results.store.folder)


@pytest.mark.parametrize("name", ["stage1-daa1", "recipe", "checklist"])
def test_no_study_of_ones_own_has_the_name_of_a_stage_or_a_chapter(results, name):
    with pytest.raises(ConfigError, match=f"'{name}' cannot name a study of your own"):
        grids.make_grid(results, START, {"dropout": [0.1]}, name=name)


def test_a_study_of_params_is_known_by_its_file_too(tmp_path):
    folder = tmp_path / "build"
    results = open_results("smoke", TINY, folder)
    assert grids.keep(str(cl.paths.PARAMS / "published/../beyond.yaml"), results) == "beyond"
    assert not folder.exists()
    (tmp_path / "my study.yaml").write_bytes(cl.paths.BEYOND.read_bytes())
    with pytest.raises(ConfigError, match=r"'my study' cannot name .*; rename the file"):
        grids.keep(str(tmp_path / "my study.yaml"), results)
    (folder / "studies").mkdir(parents=True)
    (folder / "studies/study.yaml").write_text("of another's hand")
    assert kept_studies(folder) == {}
    assert open_results("smoke", TINY, folder).paper


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--from", START, "--grid", "dropuot=0"],
            "unknown key 'dropuot'; did you mean 'dropout'?",
        ),
        (["--from", "stage1/13", "--grid", "dropout=0"], "no condition is named 'stage1/13'"),
        (["--from", START], "a grid needs a setting to vary"),
        (["--from", START, "--grid", "seed=1,2"], "give seeds apart: --seeds 42,43 or"),
        (["--from", START, "--grid", "dropout"], "--grid dropout: write each setting once"),
        (["--from", START, "--grid", "dropout=0", "--name", "a/b"], "'a/b' cannot name a study"),
        (["--from", START, "--grid", "dropout=0", "--name", "newest"], "'newest' cannot name a"),
        (["--from", START, "--grid", "dropout=0", "--name", "a.yaml"], "'a.yaml' cannot name a"),
        (["--from", START, "--grid", "dropout=0", "--name", "a" * 300], "…' cannot name a study"),
        (["--grid", "dropout=0"], "name it with --from"),
        (["--study", "newest"], "keeps no grid of your own; make one"),
        (["--study", "beyont"], "there is no study 'beyont'"),
    ],
)
def test_a_grid_that_cannot_be_gets_one_sentence(words, said, tmp_path, capsys):
    assert cli.main(["sweep", *SET_TINY, "--out", str(tmp_path), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cifarlib: ")
    assert said in line
    assert not (tmp_path / "studies").exists()


def test_the_command_line_makes_trains_and_shows_a_grid(tmp_path, made_up, capsys):
    tiny_store(tmp_path)
    where = [*SET_TINY, "--out", str(tmp_path)]
    grid = ["--grid", "dropout=0,0.3", "--grid", "learning_rate=0.001,0.003", "--seeds", "42,43"]
    assert cli.main(["sweep", *where, "--from", START, *grid]) == 0
    said = capsys.readouterr().err
    assert f"the grid is the study {NAME}, kept in {tmp_path}/studies/{NAME}.yaml" in said
    assert said.splitlines()[-1].endswith(f" --study {NAME}")
    assert cli.main(["status", *where, "--study", NAME]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[1:3] == ["10", "10"]
    assert cli.main(["why", *where, "--study", NAME, f"{NAME}-start/1"]) == 0
    assert "recorded in" in capsys.readouterr().out
    assert cli.main(["study", "check", *where, NAME]) == 0
    assert capsys.readouterr().out.endswith("8 runs, 0 of them to train: about 0 s\n")
    assert cli.main(["report", *where, "--study", NAME]) == 0
    page = (tmp_path / f"report-{NAME}.html").read_text()
    assert all(f'id="table-O{n}"' in page for n in (1, 2, 3))
    runs = explore.tabulate(open_results("smoke", TINY, tmp_path))
    assert f"{NAME}/1,dropout=0.3,learning_rate=0.003, seed 42" in list(runs["name"])
    other = tmp_path / "other"
    assert cli.main(["merge", str(tmp_path), *SET_TINY, "--out", str(other), "--study", NAME]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("10 records taken")
    assert (other / f"studies/{NAME}.yaml").read_bytes() == (
        tmp_path / f"studies/{NAME}.yaml"
    ).read_bytes()
    assert cli.main(["export", *SET_TINY, "--out", str(other)]) == 0
    packed = archive.collect(open_results("smoke", TINY, tmp_path), cl.paths.PARAMS / "smoke.yaml")
    assert f"build/smoke/studies/{NAME}.yaml" in packed


def test_a_study_of_ones_own_is_a_file_and_then_a_name(tmp_path, made_up, capsys):
    tiny_store(tmp_path / "build")
    where = [*SET_TINY, "--out", str(tmp_path / "build")]
    path = tmp_path / "mine.yaml"
    path.write_text(
        "presets: {optimizer: {sgd: {name: sgd, momentum: 0.9}}, model: "
        "{residual: {name: residual, initialization: kaiming}}}\n"
        "defaults: {model: residual, resize: null, augmentation: {}, schedule: {name: constant}, "
        "early_stopping: null, optimizer: sgd, dropout: 0.0, batch_size: 64, weight_decay: 0.0}\n"
        "stages: {mine: {title: Mine, fixed: {epochs: 30}, grid: {learning_rate: [0.1, 0.2]}}}\n"
    )
    assert cli.main(["sweep", *where, "--study", str(path)]) == 0
    assert cli.main(["status", *where]) == 0
    assert "studies of your own (--study NAME): mine" in capsys.readouterr().err
    path.write_text(path.read_text().replace("0.2]", "0.2, 0.3]"))
    assert cli.main(["sweep", *where, "--study", str(path)]) == 0
    kept = tmp_path / "build/studies/mine.yaml"
    assert kept.read_bytes() == path.read_bytes()
    capsys.readouterr()
    path.write_text(path.read_text().replace("0.2, ", ""))
    assert cli.main(["sweep", *where, "--study", str(path)]) == 2
    assert "mine.yaml has not (1); add them again, rename the file" in capsys.readouterr().err
    assert b"0.2, " in kept.read_bytes()
    path.write_text(path.read_text().replace("dropout:", "dropuot:"))
    assert cli.main(["study", "check", *where, str(path)]) == 2
    assert "unknown key 'dropuot'; did you mean 'dropout'?" in capsys.readouterr().err


def test_a_study_may_set_the_parts_of_a_group_alone(tmp_path):
    parts = "resize.size: 64, resize.crop: 56, resize.method: box"
    (tmp_path / "parts.yaml").write_text(
        "defaults: {model: residual, augmentation: {}, schedule: {name: constant}, dropout: 0.0, "
        "optimizer: sgd, batch_size: 9, learning_rate: 0.1, weight_decay: 0.0, early_stopping: 9}\n"
        f"stages: {{parts: {{title: Parts, fixed: {{epochs: 30, {parts}}}}}}}\n"
    )
    results = open_results("smoke", TINY, tmp_path, str(tmp_path / "parts.yaml"))
    assert results.runs.query("stage == 'parts'")["resize"].tolist() == ["box"]


def test_grid_in_a_cell_trains_and_keeps_it(results, made_up, capsys):
    runs = cl.grid(START, results, dropout=[0.0, 0.3], seeds=[42])
    assert list(runs["dropout"]) == [0.0, 0.3]
    assert runs["test_top1"].notna().all()
    said = f"--study stage1-daa1-13-by-dropout {results.options}\n"
    assert capsys.readouterr().out.endswith(f"and so does: cifarlib report {said}")
    with pytest.raises(ConfigError, match="unknown key 'dropuot'"):
        cl.grid(START, results, dropuot=[0.0])


# ---------------------------------------------------------------------------------------------
# The chapter
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("varied", "seeds", "rows"),
    [
        (GRID, [42, 43], 6),  # a heat map
        ({"optimizer": ["sgd", "adamw", "muon"]}, [42], 3),  # intervals over images, McNemar
        (GRID | {"batch_size": [32, 64]}, [42], 12),  # parallel coordinates
    ],
)
def test_the_chapter_shows_any_grid(tmp_path, varied, seeds, rows):
    store = RecordStore(tmp_path)
    store.write(make_data_record("cifar10"))
    results = open_results("smoke", CIFAR10, tmp_path)
    opened = grids.open_study(results, grids.make_grid(results, START, varied, seeds))
    empty = run_chapter("09_own.ipynb", tmp_path, overrides=CIFAR10)
    assert empty.contents[-1]["text"] == "The best setting is pending."
    write_records(store, opened.conditions)
    shown = run_chapter("09_own.ipynb", tmp_path, overrides=CIFAR10)
    best, means, pairs = (shown.tables[number]["rows"] for number in ("O1", "O2", "O3"))
    assert (len(best), len(means), len(pairs)) == (rows, sum(map(len, varied.values())), rows - 1)
    assert all(figure["drawn"] for figure in shown.figures.values())
    column = len(varied) + 3  # test accuracy
    runs = opened.reread().runs
    known = {f"{runs['test_top1'].max():.2f}"}
    if len(seeds) == 1:
        assert known <= {row[column] for row in best}
    for *_, p, adjusted in pairs:
        assert float(adjusted.removeprefix("< ")) >= float(p.removeprefix("< "))
    assert shown.contents[-1]["text"].startswith("Best on validation: ")


def show(folder, study):
    """What an own study's page shows, all of its runs recorded."""
    results = open_results("smoke", CIFAR10, folder, study)
    results.store.write(make_data_record("cifar10"))
    write_records(results.store, results.conditions)
    return run_chapter("09_own.ipynb", folder, overrides=CIFAR10, study=study)


def test_the_chapter_shows_all_stages_of_a_study(tmp_path):
    """Also where the first has several conditions, and no grid starts there; with their labels."""
    study = tmp_path / "mine.yaml"
    study.write_text(
        "stages:\n"
        "  sizes: {title: Sizes, from: {stage: stage1-base, runs: [1]}, seeds: [42, 43], "
        "grid: {batch_size: [8, 16]}}\n"
        "  rates: {title: Rates, from: {stage: sizes, runs: [1]}, "
        "list: [{label: quick, learning_rate: 0.01}]}\n"
    )
    shown = show(tmp_path, str(study))
    assert shown.said[0].endswith(
        "5 of 5 runs are recorded. It varies: Batch (8, 16); LR (0.001, 0.01). "
        "Up to 2 seeds of each."
    )
    assert sorted((row[0], row[1], row[3]) for row in shown.tables["O1"]["rows"]) == [
        ("", "16", "2"), ("", "8", "2"), ("quick", "16", "1"),
    ]  # fmt: skip
    assert "start" not in shown.said[-1]


def test_a_study_of_ones_own_may_name_a_stage_as_the_paper_does(tmp_path):
    """Its page shows the conditions of the file, not the paper's."""
    study = tmp_path / "mine.yaml"
    study.write_text(
        "stages:\n  stage1-daa1: {title: Mine, from: {stage: stage1-base, runs: [1]}, "
        "grid: {batch_size: [8, 16, 48]}}\n"
    )
    opened = open_results("smoke", TINY, tmp_path / "elsewhere", study).alone()
    assert set(opened.runs["run_id"]) == {c.run_id for c in opened.conditions}
    shown = show(tmp_path, str(study))
    assert shown.said[0].startswith("3 of 3 runs are recorded. It varies: Batch (8, 16, 48).")


def test_the_chapter_knows_what_a_grids_start_has_of_a_dotted_setting(tmp_path):
    results = open_results("smoke", CIFAR10, tmp_path)
    varied = {"data.test_size": [100, 200], "protocol.shuffle": [True, False]}
    tables = show(tmp_path, grids.make_grid(results, START, varied, seeds=42)).tables
    assert sorted(row[:2] for row in tables["O1"]["rows"]) == [
        ["100", "False"], ["100", "True"], ["200", "False"], ["200", "True"],
    ]  # fmt: skip
    pairs = tables["O3"]["rows"]
    starts = [row for row in pairs if row[2] == "start"]
    assert all(row[:2] == ["200", "True"] for row in starts)
    assert {row[-1] == "–" for row in pairs} == {True, False}  # of other test images
