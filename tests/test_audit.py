"""The audit: every lead has its evidence and verdict, with CIFAR-10's record and without."""

import base64
import math
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import TINY, make_data_record, make_record, tiny_store

from cifarlib import audit, augment, data, paths
from cifarlib.audit import evidence, leads
from cifarlib.errors import ConfigError, DataError
from cifarlib.records import Statistics, open_results
from cifarlib.sweep import describe

NEEDS_DATA = {"factor_49", "centre_crop", "last_layer", "input_scale"}


@pytest.fixture(scope="module")
def without_data(tmp_path_factory):
    """Results of a study that has not begun."""
    return open_results("smoke", TINY, tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="module")
def found(without_data):
    """Lead's id → what was found, without any record."""
    names = [lead.id for lead in leads.read_leads()]
    return dict(zip(names, audit.examine(without_data), strict=True))


@pytest.fixture(scope="module")
def cifar10():
    """CIFAR-10's record, as far as the audit reads it, from the images themselves."""
    try:
        training, _ = data.load("cifar10")
    except DataError as error:
        pytest.skip(f"CIFAR-10 is not here: {error}")
    images = torch.from_numpy(training.images)
    first = data.split(training.labels)[0][:32]

    def statistics(mean, std):
        return Statistics(mean=tuple(map(float, mean)), std=tuple(map(float, std)))

    return make_data_record("cifar10").model_copy(
        update={
            "statistics": statistics(*data.channel_statistics(training.images)),
            "resized": {
                "nearest": statistics(*augment.resized_statistics(images, 256, 224, "nearest"))
            },
            "pixel_sums": describe._pack_pixel_sums(training.images),
            "first_loss": describe._measure_first_loss(
                images[first], torch.from_numpy(training.labels[first])
            ),
        }
    )


# ---------------------------------------------------------------------------------------------
# All leads
# ---------------------------------------------------------------------------------------------


def test_every_lead_has_evidence_with_numbers_and_a_verdict(found):
    assert [one.lead.number for one in found.values()] == list(range(1, len(found) + 1))
    assert len(found) >= 23
    for one in found.values():
        assert re.search(r"\d", one.evidence), one.lead.text
        assert re.fullmatch(r"[^\n]+[.]", one.evidence), one.lead.text
        assert "nan" not in one.evidence.split()
        assert one.lead.text.endswith(".")
        assert one.lead.where
        assert one.verdict in audit.VERDICTS


def test_only_leads_about_the_data_wait_for_its_record(found):
    assert {name for name, one in found.items() if one.verdict == "pending"} == NEEDS_DATA


def test_the_stand_in_set_says_nothing_about_cifar10(tmp_path):
    results = open_results("smoke", TINY, tiny_store(tmp_path).folder)
    assert results.data
    assert [one.verdict for one in audit.examine(results)].count("pending") == len(NEEDS_DATA)
    assert evidence.tabulate_factor_49(results)["true"].isna().all()
    assert evidence.tabulate_crops(results)["random crop"].isna().all()


def test_the_summary_has_a_row_for_each_lead(found):
    examined = list(found.values())
    table = audit.tabulate_leads(examined)
    assert table["No."].tolist() == list(range(1, len(examined) + 1))
    assert table["Verdict"].tolist() == [one.verdict for one in examined]
    count = audit.count_verdicts(examined)
    assert count.startswith(f"{len(examined)} leads: ")
    assert f"{len(NEEDS_DATA)} pending" in count


@pytest.mark.parametrize("name", ["swapped_split", "whole_images", "differences"])
def test_the_paper_is_right_where_it_is(found, name):
    assert found[name].verdict == "refuted"


@pytest.mark.parametrize("name", ["interpolation", "step_gain", "dropout_settings"])
def test_what_the_paper_does_not_print_is_undecidable(found, name):
    assert found[name].verdict == "undecidable"


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("loss_scale", ["0.0313", "0.0156", "0.0039", "8.0"]),
        ("matrices_of_test", ["880, 930 and 915", "500"]),
        ("highest_test", ["Run 5 has 86.9", "run 13 has 86.6"]),
        ("lowest_difference", ["1.43", "1.47", "1.59", "1.64", "0.05"]),
        ("augmentation_gain", ["9.4", "19.6", "12"]),
        ("conditions", ["114", "120", "115"]),
        ("reference_result", ["91.25 %", "90 %"]),
        ("class_numbers", ["4, 5 and 6", "3, 4 and 5"]),
        ("step_gain", ["8,997", "8,940", "p = 0.19", "8.5 %"]),
        ("early_stopping", ["190 (best 139)", "128 (best 77)", "4 of 10", "6 can"]),
        ("last_layer", ["0.447", "0.0625"]),
        ("rotation", ["26 of 32", "DAA-2 in 4", "+1.2"]),
        ("three_decimals", ["0.0067", "0.2364 to 0.2431"]),
        ("depth_ratio", ["6.72"]),
        ("depth", ["9 layers", "12 with"]),
        ("shorter_training", ["182 epochs", "70,400"]),
        ("cat_and_dog", ["421", "270"]),
    ],
)
def test_evidence_has_the_known_numbers(found, name, numbers):
    for number in numbers:
        assert number in found[name].evidence


# ---------------------------------------------------------------------------------------------
# The data
# ---------------------------------------------------------------------------------------------


def test_with_cifar10_nothing_is_pending(cifar10, without_data):
    changed = {**vars(without_data), "data": cifar10}
    found = {one.lead.number: one for one in audit.examine(type(without_data)(**changed))}
    assert all(one.verdict != "pending" for one in found.values())
    assert "49.0000 times" in found[1].evidence
    assert [found[number].verdict for number in (1, 2, 23, 24)] == ["confirmed"] * 4
    assert "8.23" in found[23].evidence
    assert "6.23" in found[24].evidence


def test_factor_and_crops_on_cifar10(cifar10):
    results = SimpleNamespace(data=cifar10)
    table = evidence.tabulate_factor_49(results)
    assert table["by 224²"].tolist() == pytest.approx(table["Listing 4"].tolist(), abs=2e-8)
    crops = evidence.tabulate_crops(results).query("Method == 'nearest'")
    assert crops["random crop"].tolist() == pytest.approx([0.489218, 0.475962, 0.440012], abs=5e-7)
    assert crops["central crop"].tolist() == pytest.approx([0.488720, 0.475235, 0.439246], abs=5e-7)


def test_a_random_crop_s_mean_is_the_mean_over_all_crops():
    sums = np.random.default_rng(0).integers(0, 2**31, (3, 32, 32)).astype("<u4")
    record = make_data_record("cifar10").model_copy(
        update={"pixel_sums": base64.b64encode(sums.tobytes()).decode()}
    )
    shift = evidence._crop_shift(record, "nearest")
    resized = record.mean_image.repeat(8, axis=1).repeat(8, axis=2)
    crops = [
        resized[:, top : top + 224, left : left + 224].mean((1, 2))
        for top in range(33)
        for left in range(33)
    ]
    assert shift == pytest.approx(np.mean(crops, axis=0) - crops[16 * 33 + 16], rel=1e-4)


# ---------------------------------------------------------------------------------------------
# The tables
# ---------------------------------------------------------------------------------------------


def test_four_decimals_were_cut_off_and_two_were_rounded():
    digits = evidence.tabulate_digits().set_index(["Set", "Decimals"])
    for name in ("training", "validation"):
        assert digits.loc[(name, 4), "if cut off"] == digits.loc[(name, 4), "Values"] == 4
        assert digits.loc[(name, 4), "if rounded"] < 4
    assert digits.loc[("validation", 2), "if rounded"] == 18
    assert digits.loc[("validation", 2), "by chance"] == 9
    assert digits["Values"].sum() == 366


@pytest.mark.parametrize(
    ("value", "decimals", "expected"),
    [
        (90.12, 2, (True, False)),  # as 32-bit number 90.119995
        (90.1199, 4, (False, True)),
        (90.13, 2, (False, True)),  # 90.14 as 90.139999
        (90.125, 3, (False, False)),  # between 4,506 and 4,507 of 5,000
        (100.0, 2, (True, True)),
        (0.0, 2, (True, True)),
    ],
)
def test_whole_numbers_of_images(value, decimals, expected):
    assert evidence._reachable("validation", value, decimals) == expected


def test_augmentation_is_compared_at_equal_settings():
    table = evidence.tabulate_augmentation_gain()
    assert len(table) == 12
    assert table["gain"].min() == 9.4
    assert table["gain"].max() == 19.6
    assert (table["DAA-1"] - table["none"]).tolist() == pytest.approx(table["gain"].tolist())


def test_shares_of_variance_add_up():
    table = evidence.tabulate_variance().set_index("Search")
    numbers = table.drop(columns="Runs").apply(lambda c: c.map(lambda v: 0 if v == "–" else v))
    assert numbers.sum(axis=1).tolist() == pytest.approx([100] * 3)
    assert (numbers["Learning rate"] > 50).all()


def test_a_run_ends_when_more_than_fifty_epochs_bring_nothing():
    runs = evidence.list_long_runs().set_index(["run", "dropout"])
    assert runs.loc[(13, 0.0), "last_epoch"] == 77 + 51 == 128
    assert not runs.loc[(9, 0.1), "complete"]
    assert runs["complete"].sum() == 6
    assert runs.loc[runs["complete"], "last_epoch"].eq(200).all()


def test_selection_is_measured_on_our_records(tmp_path, without_data):
    store = tiny_store(tmp_path)
    for condition in without_data.select("stage1-long"):
        store.write(make_record(condition))
    results = open_results("smoke", TINY, tmp_path)
    table = evidence.tabulate_selection(results)
    row = table.set_index("Stage").loc[results.study.stages["stage1-long"].title]
    assert row["Runs"] == 2
    assert row["gained"] == row["by test"] - row["by validation"] == 0  # made up so
    assert row["same epoch"] == 2
    assert math.isnan(table.iloc[0]["by test"])
    behind = table.attrs["runs"]
    assert [len(runs) for runs in behind] == table["Runs"].tolist()
    assert set(sum(behind, ())) <= results.records.keys()


def test_figures_show_what_the_tables_say():
    figure = evidence.plot_augmentation_gain()
    assert {"+9.4", "+19.6"} <= {text.get_text() for text in figure.axes[0].texts}
    plt.close(figure)
    figure = evidence.plot_long_runs()
    assert [bar.get_width() for bar in figure.axes[0].patches][:2] == [190, 185]
    plt.close(figure)


# ---------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------


def test_a_source_names_listing_place_and_lines():
    facts = leads.read_facts()
    assert facts["loaders"].source == "Listing 2, run_sims, lines 586–588"
    assert facts["model_made"].source == "Listing 2, run_sims, line 590"


@pytest.mark.parametrize(
    ("name", "old", "new", "reason"),
    [
        ("leads.yaml", "- id: centre_crop", "- id: factor_49", "'factor_49' twice; rename one"),
        ("leads.yaml", "  where: §V.C\n", "", "where"),
        ("leads.yaml", "- id: depth\n", "- id: height\n", "depth, height; give each lead"),
        ("leads.yaml", "- id", "- [", "line 5"),
        ("listings.yaml", "listing: 5", "listing: five", "listing"),
    ],
)
def test_damaged_files_are_refused(tmp_path, monkeypatch, without_data, name, old, new, reason):
    for file in ("leads.yaml", "listings.yaml"):
        text = (paths.PUBLISHED / file).read_text(encoding="utf-8")
        if file == name:
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / file).write_text(text, encoding="utf-8")
    monkeypatch.setattr(paths, "PUBLISHED", tmp_path)
    with pytest.raises(ConfigError, match=rf"(?s){re.escape(name)}.*{reason}"):
        audit.examine(without_data)


def test_missing_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PUBLISHED", tmp_path)
    with pytest.raises(ConfigError, match=r"leads\.yaml cannot be read .*; restore it"):
        leads.read_leads()
    with pytest.raises(ConfigError, match=r"listings\.yaml cannot be read .*; restore it"):
        leads.read_facts()
