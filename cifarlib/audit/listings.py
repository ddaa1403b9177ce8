"""Checks of the audit on the data set and on the listings; ``leads.yaml`` says what each examines.

A verdict follows from the comparison that is made; none is written down.
"""

import math

import numpy as np

from cifarlib import published
from cifarlib.audit import evidence
from cifarlib.audit.case import (
    Case,
    Finding,
    check,
    count_batches,
    decide,
    enumerate_words,
    find_row,
    wait_for,
)
from cifarlib.audit.evidence import IMAGES
from cifarlib.config import DATASETS
from cifarlib.display import fixed, signed

# ---------------------------------------------------------------------------------------------
# The data
# ---------------------------------------------------------------------------------------------


@check
def factor_49(case: Case) -> Finding:
    if evidence.cifar10_record(case.results) is None:
        return wait_for("the channel statistics")
    table = evidence.tabulate_factor_49(case.results)
    error = table["by 224² − listing"].abs().max()
    ratio = (table["true"] / table["Listing 4"]).iloc[:3].mean()
    return decide(error < 1e-7), (
        f"The true means are {ratio:.4f} times the listing's, and (224/32)² = 49; means and "
        f"deviations over 224² pixels differ from the six constants by {error:.1e} at most."
    )


@check
def centre_crop(case: Case) -> Finding:
    table = evidence.tabulate_crops(case.results)
    centre, at_random = table["central − listing"].abs(), table["random − listing"].abs()
    if centre.isna().all() or at_random.isna().all():
        return wait_for("the statistics of resized images and the mean image")
    position = case.values("transform_224")["position"]
    holds = centre.max() < 1e-6 < at_random.min() and position == "random"
    return decide(holds), (
        f"The 18 means of Listing 4 are those of the central crop to {centre.max():.0e}; the "
        f"expected means of the {position} crop ({case.source('transform_224')}) lie "
        f"{at_random.min():.5f} to {at_random.max():.5f} higher."
    )


@check
def input_scale(case: Case) -> Finding:
    data = evidence.cifar10_record(case.results)
    if data is None:
        return wait_for("the channel statistics")
    mean, std = map(np.array, published.read_normalization()["32"])
    centres = (np.array(data.statistics.mean) - mean) / std
    spreads = np.array(data.statistics.std) / std
    return decide(bool((centres > 1).all() and (spreads > 2).all())), (
        "(x − μ)/σ with the printed constants has means of "
        f"{enumerate_words(f'{c:.2f}' for c in centres)} and standard deviations of "
        f"{enumerate_words(f'{s:.2f}' for s in spreads)} in red, green, blue, instead of 0 and 1."
    )


@check
def interpolation(case: Case) -> Finding:
    share = find_row("XV", model="Kaiming-initialised ResNet-18")["test_top1"] / 100
    least = 100 * 1.96 * math.sqrt(2 * share * (1 - share) / IMAGES["test"])
    decidable = case.says["accuracies_printed"] > 1 and case.says["runs_each"] > 1
    return "refuted" if decidable else "undecidable", (
        f"{case.says['accuracies_printed']} of {case.says['methods']} accuracies are printed; two "
        f"single runs near ResNet-18's {100 * share:.2f} % would have to differ by {least:.2f} "
        "points to be told apart on 10,000 test images, before any variation between seeds."
    )


@check
def crop_probability(case: Case) -> Finding:
    values = case.values("transform_32")
    positions = (2 * values["padding"] + 1) ** 2
    moved = 100 * values["crop_probability"] * (1 - 1 / positions)
    return decide(values["crop_probability"] != case.says["probability"]), (
        f"The crop has no probability of its own ({case.source('transform_32')}): of {positions} "
        f"positions one leaves the image as it is, so {moved:.1f} % of images are moved; only the "
        f"flip has {values['flip_probability']:g}."
    )


@check
def swapped_split(case: Case) -> Finding:
    digits = evidence.list_accuracies()
    two = digits[(digits["set"] == "validation") & (digits["decimals"] == 2)]
    values = case.values("split")
    small = values["larger_part"] > 0.5 and values["trains"] == "larger"
    holds = not (small and two["rounded"].all())
    return decide(holds), (
        f"The part of {values['larger_part']:g} is the one that trains ({case.source('split')}), "
        f"and {int(two['rounded'].sum())} of {len(two)} validation accuracies of two decimals are "
        f"multiples of 1/5,000, {len(two) / 2:.0f} of which chance would give."
    )


# ---------------------------------------------------------------------------------------------
# Training and evaluating
# ---------------------------------------------------------------------------------------------


@check
def one_transform(case: Case) -> Finding:
    values = case.values("datasets")
    return decide(values["transforms"] < values["sets"]), (
        f"{values['transforms']} transform, with crop and flip, serves {values['sets']} sets "
        f"({case.source('datasets')}); every accuracy is one draw of random crops and flips."
    )


@check
def selected_on_test(case: Case) -> Finding:
    chosen, best = (case.values(n)["set"] for n in ("reported_accuracies", "best_epoch"))
    table = evidence.read_searches()
    lead = table["test_top1"] - table["validation_top1"]
    return decide(chosen != best), (
        f"The accuracies come from the best epoch on the {chosen} set "
        f"({case.source('reported_accuracies')}), the best epoch from the {best} set "
        f"({case.source('best_epoch')}); test exceeds validation in {int((lead > 0).sum())} of "
        f"{len(lead)} runs of stage 1, by {lead.mean():.2f} points on average."
    )


@check
def checkpoint(case: Case) -> Finding:
    run = find_row("XIII", dropout=0.2)
    return decide(not case.values("checkpoint")["copied"]), (
        f"The state kept as best is not copied ({case.source('checkpoint')}): later steps change "
        "it, too; the one matrix printed, Table XII, cannot show it, for its run was best in epoch "
        f"{run['best_epoch']} of {run['epochs']}."
    )


@check
def loss_scale(case: Case) -> Finding:
    values = case.values("loss")
    sizes = case.says["batch_sizes"]
    scales = [count_batches(size) / IMAGES["train"] for size in sizes]
    holds = values["summed"] == "batch means" and values["divided_by"] == "images"
    return decide(holds), (
        f"Batch means are summed and divided by the number of images ({case.source('loss')}), so a "
        f"loss of 1 an image is drawn as {enumerate_words(f'{s:.4f}' for s in scales)} for batches "
        f"of {enumerate_words(sizes)}: a factor of {scales[0] / scales[-1]:.1f} from batch size "
        "alone."
    )


@check
def no_shuffle(case: Case) -> Finding:
    counts = [f"{count_batches(size):,}" for size in case.values("search_grid")["batch_size"]]
    return decide(not case.values("loaders")["shuffle_training"]), (
        f"No loader shuffles ({case.source('loaders')}): the {enumerate_words(counts)} batches of "
        f"the {len(counts)} batch sizes hold the same images in each of 30 or 200 epochs."
    )


@check
def matrices_of_test(case: Case) -> Finding:
    table = published.read_table("XII")
    sums = table[["cat", "deer", "dog"]].sum(axis=1)
    classes = len(DATASETS["cifar10"].classes)
    each = {name: IMAGES[name] // classes for name in ("validation", "test")}
    values = case.values("matrices")
    holds = (sums > each["validation"]).all() and values["set"] != values["title"]
    return decide(bool(holds)), (
        f"Three of ten columns of Table XII already sum up to {enumerate_words(sums)} images a "
        f"class, where validation has {each['validation']} and the test set {each['test']:,}; the "
        f"{values['set']} loader is passed ({case.source('matrices')})."
    )


@check
def keepdims(case: Case) -> Finding:
    table = published.read_table("XIII").sort_values("dropout")
    order = table["dropout"].corr(table["train_top1"], method="spearman")
    holds = case.values("dropout_argument")["meaning"] == "drop" and order < 0
    none = table.iloc[0]
    return decide(holds), (
        f"It is handed to nn.Dropout ({case.source('dropout_argument')}); in Table XIII training "
        f"accuracy falls as it grows (rank correlation {fixed(2)(order)}), and a probability of "
        f"keeping of {none['dropout']:g} could not reach {none['train_top1']} %."
    )


@check
def early_stopping(case: Case) -> Finding:
    runs = evidence.list_long_runs()
    short = runs[~runs["complete"]]
    ends = [f"{r.last_epoch} (best {r.best_epoch})" for r in short.itertuples()]
    return decide(len(short) > 0), (
        f"With a patience of {case.values('early_stopping')['patience']} "
        f"({case.source('early_stopping')}) {len(short)} of {len(runs)} runs ended at epoch "
        f"{enumerate_words(ends)}; {int(runs['complete'].sum())} can have run all 200."
    )


@check
def schedulers(case: Case) -> Finding:
    plateau, cosine = case.values("plateau_scheduler"), case.values("cosine_scheduler")
    stuck = plateau["update"] == "max" and math.isinf(plateau["start_min"])
    modules, calls = case.values("imports")["modules"], case.values("scheduler_calls")
    return decide(stuck and cosine["needs"] not in modules), (
        "In mode “min” the best loss starts at infinity and the larger value is kept "
        f"({case.source('plateau_scheduler')}), so the rate never falls; the cosine needs "
        f"{cosine['needs']}, which is not among the {len(modules)} modules imported; "
        f"{calls['active']} of {calls['active'] + calls['commented']} lines with one are active."
    )


@check
def last_layer(case: Case) -> Finding:
    (features, classes), *_ = case.values("network")["linear"]
    wide, narrow = math.sqrt(2 / classes), math.sqrt(2 / features)
    text = (
        f"Fan-out {classes} gives weights of σ = √(2/{classes}) = {wide:.3f} "
        f"({case.source('initialization')}), {wide / narrow:.1f} times the {narrow:.4f} of fan-in "
        f"{features}; "
    )
    data = evidence.cifar10_record(case.results)
    if data is None:
        return "pending", f"{text}the first loss needs a record of CIFAR-10."
    first = data.first_loss
    return decide(first["fan_out"] > 2 * math.log(classes)), (
        f"{text}the first batch of 32, seed 42, has a loss of {first['fan_out']:.2f} (with fan-in "
        f"{first['fan_in']:.2f}), against ln {classes} = {math.log(classes):.2f} for guessing."
    )


@check
def timing(case: Case) -> Finding:
    values = case.values("timed_loop")
    base = evidence.read_searches("IV", "V", "VI")
    trained, evaluated = values["trained"], values["evaluated"]
    share = 100 * evaluated / (evaluated + trained)
    work = 100 * evaluated / (evaluated + 3 * trained)
    return decide(evaluated > 0), (
        f"Of {trained + evaluated:,} images an epoch {share:.0f} % are only evaluated "
        f"({case.source('timed_loop')}), about {work:.0f} % of the operations if a training step "
        f"costs three forward passes; that is in all {len(base)} times, {base['time_s'].min():.0f} "
        f"to {base['time_s'].max():.0f} s."
    )


# ---------------------------------------------------------------------------------------------
# What the listings train
# ---------------------------------------------------------------------------------------------


@check
def dropout_settings(case: Case) -> Finding:
    grid = case.values("dropout_grid")
    listed = [(rate, rate * grid["weight_decay_per_rate"]) for rate in grid["learning_rate"]]
    printed = find_row("XIV")[["learning_rate", "weight_decay"]].tolist()
    inside = any(np.allclose(printed, pair) for pair in listed)
    with_, without = find_row("XIV", dropout=0.1), find_row("XIV", dropout=0.0)
    pairs = enumerate_words(f"{rate:g} with {decay:g}" for rate, decay in listed)
    return "refuted" if inside else "undecidable", (
        f"The listing trains learning rates and weight decays of {pairs} "
        f"({case.source('dropout_grid')}), and not Table XIV's {printed[0]:g} with "
        f"{printed[1]:g}; which one gave {with_['test_top1']:.2f} % with dropout 0.1, against "
        f"{without['test_top1']:.2f} % without, the paper cannot tell."
    )


@check
def rotation(case: Case) -> Finding:
    from scipy import stats

    gain = evidence.pair_tables("VIII", "VII")["gain"]
    better, worse = int((gain > 0).sum()), int((gain < 0).sum())
    p = stats.binomtest(better, better + worse).pvalue
    listed = case.values("transform_32")["rotation_degrees"]
    return decide(p < 0.05 and not listed), (
        f"DAA-1 is ahead in {better} of {len(gain)} pairs of runs, DAA-2 in {worse}, by "
        f"{signed(1)(gain.mean())} points on average (sign test: p = {p:.5f}); the transform of "
        f"the listing rotates by {listed}° ({case.source('transform_32')})."
    )


@check
def listing_model(case: Case) -> Finding:
    values = case.values("model_made")
    rate = case.values("resnet_grid")["learning_rate"]
    return decide(values["model"] != "residual"), (
        f"Every run trains {values['called']}, a pre-trained ResNet-18, at a rate of {rate} "
        f"({case.source('model_made')}); {values['unused']} is not called, and the dropout of a "
        "condition reaches no network."
    )


@check
def improved_schedule(case: Case) -> Finding:
    calls = case.values("scheduler_calls")
    long = find_row("XIV", dropout=0.0)
    return decide(calls["active"] == 0 and "drop_epoch" in calls), (
        f"The text lowers the rate when validation exceeds {case.says['threshold']} %; the listing "
        f"has, commented out, a factor of {calls['drop_factor']} at epoch {calls['drop_epoch']} "
        f"({case.source('scheduler_calls')}), {long['best_epoch'] - calls['drop_epoch']} epochs "
        "before the best one of the run at a constant rate."
    )


@check
def depth(case: Case) -> Finding:
    values = case.values("network")
    main = len(values["convolutions"]) + len(values["linear"])
    side = len(values["projections"])
    return decide(main + side < case.says["layers"]), (
        f"Listing 1 has {len(values['convolutions'])} convolutions and {len(values['linear'])} "
        f"linear layer, {main} layers with weights in a row, {main + side} with the {side} "
        f"projections beside them, not {case.says['layers']}."
    )


@check
def same_parameters(case: Case) -> Finding:
    grid = case.values("resnet_grid")
    return decide(grid["changes_of_rate"] < case.says["changes_of_rate"]), (
        f"The listing keeps the rate at {grid['learning_rate']} ({case.source('resnet_grid')}); "
        f"both papers lower it {case.says['changes_of_rate']} times ({case.says['source']})."
    )


@check
def shorter_training(case: Case) -> Finding:
    size = case.values("resnet_grid")["batch_size"]
    epochs = case.values("early_stopping")["epochs"]
    ours, theirs = epochs * count_batches(size), case.says["iterations"]
    return decide(theirs <= ours), (
        f"{theirs:,} steps of {size} images ({case.says['source']}) are "
        f"{theirs * size / IMAGES['train']:.0f} epochs of 45,000; the {epochs} epochs here are "
        f"{ours:,} such steps, and {epochs * count_batches(64):,} with run 13's batches of 64."
    )


@check
def captions(case: Case) -> Finding:
    names = case.values("heat_map")["names"]
    first, second = case.says["figure_6"], case.says["figure_7"]
    classes = len(DATASETS["cifar10"].classes)
    return decide(first == second and len(names) < classes), (
        f"Both captions name run {first}, the text runs {enumerate_words(case.says['text'])}; the "
        f"heat map is given {len(names)} names, {names[0]} to {names[-1]}, for {classes} classes "
        f"({case.source('heat_map')})."
    )
