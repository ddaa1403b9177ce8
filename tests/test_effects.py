"""Effect sizes over the grids: the paper's printed numbers, and ours where a grid is complete."""

import pytest
from conftest import make_data_record, make_record

from cifarlib import effects
from cifarlib.records import RecordStore, open_results


def recorded(folder, *stages, overrides=()):
    store = RecordStore(folder)
    store.write(make_data_record("synthetic"))
    for condition in open_results("smoke", overrides, folder).conditions:
        if condition.stage in stages:
            store.write(make_record(condition))
    return open_results("smoke", overrides, folder)


@pytest.mark.parametrize(
    ("grid", "rows"), [("base", 36), ("broad", 64), ("augmentation", 36), ("dropout", 10)]
)
def test_grids_are_complete_and_balanced(grid, rows):
    frame = effects.published_grid(grid)
    assert len(frame) == rows
    levels = [frame[factor].nunique() for factor in effects.GRIDS[grid].factors]
    counts = frame.groupby(list(effects.GRIDS[grid].factors)).size()
    assert (counts == 1).all()
    assert len(counts) == rows
    product = 1
    for level in levels:
        product *= level
    assert product == rows


def test_ours_are_the_same_conditions(tmp_path):
    results = recorded(tmp_path, "stage1-base", "stage1-daa1", "stage1-daa2")
    for grid in ("base", "broad", "augmentation"):
        paper, ours = effects.published_grid(grid), effects.recorded_grid(results, grid)
        factors = list(effects.GRIDS[grid].factors)
        order = {"by": factors, "ignore_index": True}
        assert ours.sort_values(**order)[factors].equals(paper.sort_values(**order)[factors])
        assert len(effects.conditions(results, grid)) == len(paper)
    assert effects.recorded_grid(results, "dropout") is None


def test_the_learning_rate_explains_most_of_the_papers_searches():
    base, broad = effects.published_effects("base"), effects.published_effects("broad")
    assert base["share"].idxmax() == broad["share"].idxmax() == "learning_rate"
    assert base.loc["learning_rate", "share"] == pytest.approx(0.590, abs=5e-4)
    assert broad.loc["learning_rate", "share"] == pytest.approx(0.705, abs=5e-4)
    assert base.loc["weight_decay", "p"] > 0.5
    with_augmentation = effects.published_effects("augmentation")
    assert with_augmentation["share"].idxmax() == "augmentation"


def test_several_seeds_are_replicates(tmp_path):
    overrides = ["seeds=[1, 2]"]
    results = recorded(tmp_path, "stage1-long", "stage2-dropout", overrides=overrides)
    assert len(effects.recorded_grid(results, "dropout")) == 20
    assert effects.recorded_effects(results, "dropout").loc["rest", "df"] == 10


def test_the_table_waits_grid_by_grid(tmp_path):
    table = effects.tabulate_effects(recorded(tmp_path, "stage1-base"))
    mine = table["Share, %", "ours"]
    base = table["", "Grid"] == "Base search"
    assert mine[base].notna().all()
    assert mine[base].sum() == pytest.approx(100)
    assert mine[~base].isna().all()
    assert table["Share, %", "paper"].notna().all()
    assert len(table.attrs["runs"]) == len(table)
    assert len(table.attrs["runs"][0]) == 36


def test_the_figure_has_a_bar_for_each_share(tmp_path):
    results = recorded(tmp_path, "stage1-base")
    figure = effects.plot_effects(results)
    base, broad, *_ = figure.axes
    table = effects.tabulate_effects(results)
    shares = table[table["", "Grid"] == "Base search"]["Share, %"]
    widths = [bar.get_width() for bar in base.patches]
    assert widths == pytest.approx([*shares["paper"][::-1], *shares["ours"][::-1]])
    assert len(broad.patches) == 6
    assert "pending" in broad.get_title()
    assert "Base search: paper learning rate 59 %" in effects.describe_effects(results)
