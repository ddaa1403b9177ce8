"""Past the paper: what the chapter computes from records of the second study, real or missing."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import make_record

from cifarlib.beyond import dropout, noise, protocol, recipe, schedules, seeds
from cifarlib.records import Results, RunRecord, open_results
from cifarlib.study import STUDIES


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Results:
    return open_results("smoke", (), tmp_path_factory.mktemp("beyond"), STUDIES["beyond"])


def give(results: Results, *stages: str, skip=lambda condition: False) -> Results:
    """The same results with made-up records of some stages."""
    chosen = [c for c in results.select(*stages) if not skip(c)]
    return dataclasses.replace(results, records={c.run_id: make_record(c) for c in chosen})


def top1(record: RunRecord) -> float:
    history = record.result.history.test
    return history.top1[record.reported_epoch] / history.images


# -- seeds ------------------------------------------------------------------------------------


def test_means_and_paired_differences_are_numpys(empty):
    results = give(empty, "recipe")
    settings = seeds.by_label(results, "recipe")
    (_, first), (_, second), *_ = settings.items()
    ours = seeds.average(results, first)
    values = [100 * top1(results.record(c)) for c in first]
    assert ours.values == pytest.approx(values)
    assert ours.mean == pytest.approx(np.mean(values))
    gap = seeds.difference(results, second, first)
    expected = [100 * top1(results.record(b)) - a for b, a in zip(second, values, strict=True)]
    assert gap.values == pytest.approx(expected)
    error = np.std(expected, ddof=1) / len(expected) ** 0.5
    assert gap.interval.high - gap.mean == pytest.approx(4.302653 * error, rel=1e-5)  # t, 2 free
    assert set(gap.runs) == {c.run_id for c in [*first, *second]}


def test_only_seeds_that_both_settings_have_are_paired(empty):
    results = give(empty, "recipe", skip=lambda c: c.config.seed == 43)
    (_, first), (_, second), *_ = seeds.by_label(give(empty, "recipe"), "recipe").items()
    assert seeds.difference(results, second, first).count == 2
    assert seeds.average(empty, first).say() is None
    one = give(empty, "recipe", skip=lambda c: c.config.seed != 42)
    mean = seeds.average(one, first)
    assert (mean.count, mean.interval) == (1, None)
    assert mean.say() == f"{mean.mean:.2f}"


# -- protocol ---------------------------------------------------------------------------------


def test_what_is_read_of_a_published_run_comes_from_its_history(empty):
    (condition, *_) = seeds.by_label(empty, protocol.STAGE, 1)[protocol.PUBLISHED]
    record = make_record(condition)
    chosen = {"validation": 1, "test": 2, "last": condition.config.epochs}
    record = record.model_copy(
        update={"result": record.result.model_copy(update={"chosen": chosen})}
    )
    history = record.result.history.test
    assert protocol.chosen_on_validation(record) == 100 * history.top1[1] / history.images
    assert seeds.tested(record) == 100 * history.top1[2] / history.images  # selected on test


def test_each_flaw_is_compared_with_the_runs_as_published(empty):
    results = give(empty, protocol.STAGE)
    found = protocol.effects(results, 1)
    labels = list(seeds.by_label(results, protocol.STAGE, 1))
    trained = [e.label for e in found if e.how == "trained"]
    assert trained == labels
    assert found[0].change is None
    assert found[-1].label == protocol.CORRECTED
    for effect in found[1:]:
        gaps = np.subtract(effect.value.values, found[0].value.values)
        assert effect.change.values == pytest.approx(gaps.tolist())
    sentence = protocol.say_optimism(results)
    assert "89.97" in sentence
    gain = found[-1].change.mean
    assert f"{abs(gain):.2f} points {'below' if gain > 0 else 'above'} the corrected" in sentence
    assert len(protocol.tabulate_protocol(results)) == 2 * len(found)


# -- noise ------------------------------------------------------------------------------------


def test_deviations_are_those_of_the_seeds(empty):
    results = give(empty, noise.STAGE)
    floor = noise.floors(results)[0]
    values = [100 * top1(results.record(c)) for c in results.select(noise.STAGE) if c.run == 1]
    assert floor.values == pytest.approx(values)
    assert floor.seeds == pytest.approx(np.std(values, ddof=1))
    assert floor.interval.low < floor.seeds < floor.interval.high
    share = np.mean(values) / 100
    assert floor.test_set == pytest.approx(100 * (share * (1 - share) / floor.images) ** 0.5)
    assert noise.least_difference(floor) == pytest.approx(2.262157 * 2**0.5 * floor.seeds)  # 9 free


def test_rows_within_the_noise_are_counted(empty):
    results = give(empty, noise.STAGE)
    limit = max(noise.least_difference(floor) for floor in noise.floors(results))
    row = noise.tabulate_survivors(results).iloc[0]
    paper = noise.published.read_table("IV").test_top1
    count = sum(paper.max() - value <= limit for value in paper) - 1
    assert row["Within seeds' noise"] == f"{count} of {len(paper) - 1}"
    assert noise.tabulate_survivors(empty)["Within seeds' noise"].isna().all()


def test_the_setting_with_the_most_seeds_rules(empty):
    """However large the noise that two seeds of another leave room for."""
    given = give(empty, noise.STAGE)
    kept = [c for c in given.select(noise.STAGE) if c.run == 1]
    kept += [c for c in given.select(noise.STAGE) if c.run == 2][:2]
    few = dataclasses.replace(given, records={c.run_id: given.record(c) for c in kept})
    many, two = noise.floors(few)
    assert len(many.values) > len(two.values) == 2
    assert noise.ruling_floor(few) == many
    assert f"{noise.least_difference(many):.2f} points" in noise.say_noise(few)
    assert noise.ruling_floor(empty) is None


def test_seeds_of_the_corrected_protocol_count_for_the_noise(empty):
    results = give(empty, protocol.STAGE)
    corrected = seeds.by_label(results, protocol.STAGE, 1)[protocol.CORRECTED]
    assert len(noise.floors(results)[0].values) == len(corrected)


# -- dropout ----------------------------------------------------------------------------------


def test_the_nearer_reading_of_the_dropout_table_is_named(empty):
    assert dropout.say_dropout(empty).startswith("Pending")
    partly = give(empty, dropout.STAGE, skip=lambda c: c.config.dropout == 0.5)
    assert dropout.say_dropout(partly).startswith("Pending")
    results = give(empty, dropout.STAGE)
    sentence = dropout.say_dropout(results)
    assert "as captioned" in sentence
    assert "only the shape" in sentence  # a reduced budget tells nothing of absolute numbers
    frame = dropout.tabulate_dropout(results)
    assert frame["Dropout"].tolist() == [0.0, 0.1, 0.2, 0.5, 0.7]
    assert frame[["as captioned", "as listed"]].notna().all(axis=None)


# -- schedules --------------------------------------------------------------------------------


def test_each_schedule_stands_at_its_best_rate_on_validation(empty):
    results = give(empty, schedules.STAGE)
    found = schedules.entries(results)
    assert len(found) == 12
    for entry in found:
        assert len(entry.rates) == len(entry.tried) == 3
        assert entry.tried[entry.best] == max(entry.tried.values())
        first = results.record(entry.conditions[0])
        assert entry.tried[entry.best] == first.accuracy("validation")
    assert "best on validation" in schedules.say_schedules(results)
    assert schedules.say_schedules(empty).count("pending") == 2


# -- recipe -----------------------------------------------------------------------------------


def test_gains_are_upon_the_step_before_and_alone_upon_the_first(empty):
    results = give(empty, recipe.STAGE, recipe.ALONE)
    found = recipe.steps(results)
    value = [seeds.average(results, step.conditions, seeds.validated).mean for step in found]
    for place, step in enumerate(found[1:], start=1):
        assert step.gain.mean == pytest.approx(value[place] - value[place - 1])
        alone = seeds.by_label(results, recipe.ALONE)[step.label]
        expected = seeds.average(results, alone, seeds.validated).mean - value[0]
        assert step.alone.mean == pytest.approx(expected)


def test_the_first_epoch_that_reaches_an_accuracy(empty):
    (condition, *_) = empty.select("recipe-whole")
    record = make_record(condition)
    history = record.result.history.test
    shares = [100 * right / history.images for right in history.top1]
    target = max(shares[1:])
    assert recipe.reached(record, target) == shares.index(target, 1)
    assert recipe.reached(record, 100.1) is None


def test_the_step_that_the_recipe_ends_with_is_the_studys(empty):
    labels = list(seeds.by_label(empty, recipe.STAGE))
    ends = len(recipe.say_extent(empty).split("tried behind it: ")[1].split(", "))
    last = labels[-ends - 1]
    assert f"step {len(labels) - ends} of {len(labels)}, “{last}”" in recipe.say_extent(empty)
    step = seeds.by_label(empty, recipe.STAGE)[last][0].config
    whole = empty.select("recipe-whole")[0].config
    assert whole.augmentation == step.augmentation
    assert whole.optimizer == step.optimizer


def test_what_the_recipe_reaches_stands_beside_the_paper(empty):
    frame = recipe.tabulate_reach(empty)
    assert frame.loc[0, ["Test", "Epochs"]].tolist() == ["89.97", "200"]
    assert frame.loc[1:, "Test"].isna().all()
    assert "pending" in recipe.say_reach(empty)
    results = give(empty, *recipe.REACH)
    assert recipe.tabulate_reach(results)["Seeds"].tolist() == [1, 3, 3, 3]
    assert "3 seeds" in recipe.say_reach(results)
    assert "In 4 epochs, " in recipe.say_reach(results)


def test_the_recipe_in_thirty_epochs_has_them_at_every_scale_but_smoke(tmp_path):
    """Epochs that a stage gives for a scale are meant; others are the paper's, and shrink."""
    for scale, epochs, images in [("smoke", 4, 200), ("lite", 30, 45_000), ("full", 30, 45_000)]:
        results = open_results(scale, (), tmp_path, STUDIES["beyond"])
        config = results.select("recipe-30")[0].config
        assert (config.epochs, config.data.train_size) == (epochs, images)


# -- figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "stages", "name"),
    [
        (protocol, [protocol.STAGE], "protocol"),
        (schedules, [schedules.STAGE], "schedules"),
        (recipe, [recipe.STAGE, recipe.ALONE], "recipe"),
    ],
)
def test_figures_say_in_words_what_they_show(empty, part, stages, name):
    plot, describe = getattr(part, f"plot_{name}"), getattr(part, f"describe_{name}")
    assert plot(empty) is None
    assert "pending" in describe(empty)
    partly = give(empty, *stages, skip=lambda c: c.config.seed != 42 or "AdamW" in str(c.settings))
    full = give(empty, *stages)
    assert plot(partly).axes
    assert plot(full).axes
    plt.close("all")
    assert "pending" not in describe(full)
