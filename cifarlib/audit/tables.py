"""Checks of the audit on the paper's tables and its text; ``leads.yaml`` says what each examines.

A verdict follows from the comparison that is made; none is written down.
"""

import math

import numpy as np

from cifarlib import published
from cifarlib.audit import evidence
from cifarlib.audit.case import Case, Finding, check, decide, enumerate_words, find_row
from cifarlib.audit.evidence import IMAGES
from cifarlib.config import DATASETS
from cifarlib.display import fixed

# ---------------------------------------------------------------------------------------------
# Numbers of the text
# ---------------------------------------------------------------------------------------------


@check
def conditions(case: Case) -> Finding:
    sizes = {number: len(published.read_table(number)) for number in published.TITLES}
    search = sum(sizes[number] for number in ("IV", "V", "VI", "VII", "VIII"))
    dropout = sum(sizes[number] - 1 for number in ("XIII", "XIV"))  # 0.0 is the long run
    trained = sizes["XV"] - 1  # one result was only cited
    total = search + sizes["IX"] + dropout + trained
    rows = search + sizes["XIII"] + sizes["XIV"] + sizes["XV"]
    said = case.says["conditions"]
    alike = f"; {rows} are the rows of Tables IV–VIII and XIII–XV, a cited result included"
    return decide(said not in (total, total + sizes["II"])), (
        f"{search} + {sizes['IX']} long + {dropout} with dropout + {trained} of Table XV are "
        f"{total}, and {total + sizes['II']} with the {sizes['II']} resize methods, not {said}"
        f"{alike if rows == said else ''}."
    )


@check
def reference_result(case: Case) -> Finding:
    accuracy = find_row("XV", model="Published ResNet-18")["test_top1"]
    error = case.says["resnet20_error"]
    share = 100 * IMAGES["train"] / (IMAGES["train"] + IMAGES["validation"])
    holds = math.isclose(accuracy, 100 - error) and share != case.says["share"]
    return decide(holds), (
        f"{case.says['resnet20_source']}, gives ResNet-20 an error of {error} %, that is "
        f"{100 - error:.2f} %; and 45,000 of 50,000 images are {share:.0f} %, "
        f"not {case.says['share']} %."
    )


@check
def batch_sizes(case: Case) -> Finding:
    base, broad = (
        sorted(evidence.read_searches(*numbers)["batch_size"].unique().tolist())
        for numbers in (("IV", "V", "VI"), ("VII", "VIII"))
    )
    one, other = case.says["first_list"], case.says["second_list"]
    return decide(one != other and base != broad), (
        f"The lists have {enumerate_words(one)}, and {enumerate_words(other)}; Tables IV–VI use "
        f"{enumerate_words(base)}, Tables VII and VIII {enumerate_words(broad)}."
    )


@check
def class_numbers(case: Case) -> Finding:
    table = published.read_table("XII")
    indices = [DATASETS["cifar10"].classes.index(label) for label in table["label"]]
    return decide(table["number"].tolist() == [index + 1 for index in indices]), (
        f"{enumerate_words(table['label']).capitalize()} are {enumerate_words(table['number'])} in "
        f"Table XII and {enumerate_words(indices)} in the files of CIFAR-10, which the listings "
        "use unchanged."
    )


@check
def three_decimals(case: Case) -> Finding:
    table = published.read_table("II")
    spread = {n: np.ptp(table[[f"{n}_{c}" for c in "rgb"]], axis=0).max() for n in ("mean", "std")}
    limit = 10.0 ** -case.says["decimals"]
    return decide(max(spread.values()) >= limit), (
        f"Over the six methods of Table II the means differ by up to {spread['mean']:.4f}, the "
        f"standard deviations by up to {spread['std']:.4f} "
        f"({table['std_r'].min():.4f} to {table['std_r'].max():.4f} in red)."
    )


@check
def epochs_caption(case: Case) -> Finding:
    return decide(case.says["densenet"] != case.says["caption"]), (
        f"The caption says {case.says['caption']} epochs for all rows; §IV.C gives DenseNet-121 "
        f"{case.says['densenet']}."
    )


@check
def cross_references(case: Case) -> Finding:
    tables = evidence.read_searches().query("augmentation == 'none'")
    true = {name: part["table"].iloc[0] for name, part in tables.groupby("optimizer", sort=False)}
    wrong = [name for name, number in true.items() if case.says[name] != number]
    names = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
    told = [f"{names[n]} in Table {true[n]} (cited as {case.says[n]})" for n in true]
    return decide(len(wrong) > 0), f"The {len(tables)} base runs are {enumerate_words(told)}."


@check
def depth_ratio(case: Case) -> Finding:
    ratio = case.says["deep"] / case.says["shallow"]
    return decide(round(ratio, 1) != case.says["times"]), (
        f"{case.says['deep']} / {case.says['shallow']} layers = {ratio:.2f}, not "
        f"{case.says['times']}."
    )


@check
def differences(case: Case) -> Finding:
    printed = evidence.list_differences()
    bad = int((printed["error"] > printed["allowed"]).sum())
    models = published.read_table("XV").set_index("model")["test_top1"]
    improved, reference = models["Improved run 13"], models["Published ResNet-18"]
    scratch = models["Kaiming-initialised ResNet-18"]
    base = evidence.read_searches("IV", "V", "VI").nlargest(1, "test_top1").iloc[0]
    over = find_row("VII", run=9)["test_top1"] - find_row("VII", run=1)["test_top1"]
    says = case.says
    follow = [
        math.isclose(reference - improved, says["below_reference"], abs_tol=1e-6),
        math.isclose(improved - find_row("XI", top_k=1)["test"], says["step"], abs_tol=1e-6),
        reference - scratch < says["from_scratch_within"],
        abs(over - says["run_9_over_1"]) <= 0.5 + 1e-6,
        round(says["best_base"], 1) == base["test_top1"],
    ]
    return decide(bad > 0 or not all(follow)), (
        f"{len(printed) - bad} of {len(printed)} printed train − test differences and "
        f"{sum(follow)} of {len(follow)} numbers of the text ({says['below_reference']}, "
        f"{says['step']}, under {says['from_scratch_within']}, {says['run_9_over_1']} for "
        f"{over:.1f}, {says['best_base']} for {base['test_top1']}) follow."
    )


# ---------------------------------------------------------------------------------------------
# Digits
# ---------------------------------------------------------------------------------------------


@check
def truncated_digits(case: Case) -> Finding:
    digits = evidence.list_accuracies().query("decimals == 4")
    cut, rounded = int(digits["cut"].sum()), int(digits["rounded"].sum())
    example = digits[digits["set"] == "validation"].iloc[0]["value"]
    count = round(example / 100 * IMAGES["validation"])
    return decide(cut == len(digits) > rounded), (
        f"Of {len(digits)} values with four decimals {cut} are whole numbers of images cut off, "
        f"{rounded} rounded: {example} is {count:,} of {IMAGES['validation']:,} images, "
        f"{100 * count / IMAGES['validation']:.2f} %, in 32 bits."
    )


@check
def whole_images(case: Case) -> Finding:
    digits = evidence.list_accuracies()
    good = digits["rounded"] | digits["cut"]
    steps = digits["set"].map(IMAGES) / 100 / 10.0 ** digits["decimals"]
    return decide(not good.all()), (
        f"{int(good.sum())} of {len(digits)} printed accuracies are whole numbers of images; in "
        f"{int((steps < 1).sum())} of them the digits are enough for this to mean something."
    )


# ---------------------------------------------------------------------------------------------
# The searches
# ---------------------------------------------------------------------------------------------


@check
def highest_test(case: Case) -> Finding:
    table = published.read_table("VII").set_index("run")
    best, said = table["test_top1"].idxmax(), case.says["run"]
    return decide(best != said), (
        f"Run {best} has {table.loc[best, 'test_top1']} %, run {said} has "
        f"{table.loc[said, 'test_top1']} %."
    )


@check
def lowest_difference(case: Case) -> Finding:
    first, second = case.says["first"], case.says["second"]
    gaps = {
        number: published.read_table(number).set_index("run")["train_test_difference"]
        for number in ("VII", "VIII")
    }
    apart = {number: round(gap[second] - gap[first], 2) for number, gap in gaps.items()}
    alike = apart["VIII"] == case.says["apart"]
    return decide(apart["VII"] != case.says["apart"]), (
        f"In Table VII run {second} has {gaps['VII'][second]} and run {first} "
        f"{gaps['VII'][first]}; Table VIII has {gaps['VIII'][first]} and {gaps['VIII'][second]}, "
        f"{'the' if alike else 'not the'} order and distance of the text, {case.says['apart']}."
    )


@check
def augmentation_gain(case: Case) -> Finding:
    gain = evidence.tabulate_augmentation_gain()["gain"]
    above = int((gain > case.says["up_to"]).sum())
    return decide(above > 0), (
        f"In the {len(gain)} settings that Tables VI and VII share DAA-1 gains {gain.min():.1f} to "
        f"{gain.max():.1f} points, more than {case.says['up_to']} in {above} of them."
    )


@check
def rate_decides(case: Case) -> Finding:
    base = evidence.read_searches("IV", "V", "VI")
    shares = evidence.share_variance(base, ["optimizer", *evidence.SETTINGS])
    high = base["test_top1"] > case.says["threshold"]
    rate = base["learning_rate"] == case.says["rate"]
    rates = base["learning_rate"].nunique()
    return decide(bool(rate[high].all()) and rates == 2), (
        f"All {int(high.sum())} base runs above {case.says['threshold']} % have the rate "
        f"{case.says['rate']:g}, but so have {int((rate & ~high).sum())} below; the choice of "
        f"{rates} rates, a factor of ten apart, explains {shares['learning_rate']:.0f} % of the "
        f"variance, the optimiser {shares['optimizer']:.0f} %, batch size "
        f"{shares['batch_size']:.0f} %."
    )


@check
def optimizer_choice(case: Case) -> Finding:
    from scipy import stats

    first, second = (published.read_table(number) for number in ("V", "VI"))
    gain = second["test_top1"] - first["test_top1"]
    test = stats.ttest_1samp(gain, 0)
    low, high = test.confidence_interval()
    return decide(abs(gain.mean()) < case.says["less_than"]), (
        f"AdamW is ahead in {int((gain > 0).sum())} of {len(gain)} settings, by {gain.mean():.2f} "
        f"points on average (95 % interval {fixed(2)(low)} to {fixed(2)(high)}, "
        f"p = {test.pvalue:.2f}), from one seed each and by test accuracy."
    )


@check
def candidate_choice(case: Case) -> Finding:
    table = published.read_table("VII").set_index("run")
    said = case.says["run"]
    fair, best = table["validation_top1"].idxmax(), table["test_top1"].idxmax()
    pairs = {run: table.loc[run, ["validation_top1", "test_top1"]].tolist() for run in table.index}
    return decide(fair not in (best, said)), (
        f"The best validation accuracy of Table VII, {pairs[fair][0]} %, is run {fair}'s, with "
        f"{pairs[fair][1]} % on the test set; the text's run {said} has {pairs[said][0]} and "
        f"{pairs[said][1]} %, run {best} {pairs[best][0]} and {pairs[best][1]} %."
    )


@check
def short_runs(case: Case) -> Finding:
    table = evidence.read_searches()
    late = table["best_epoch"] > table["epochs"] - 3
    chance = (3 / table["epochs"]).mean()
    return decide(late.mean() > 2 * chance), (
        f"{int(late.sum())} of {len(table)} runs have their best epoch among the last three of 30, "
        f"{100 * late.mean():.0f} %, where {100 * chance:.0f} % of the epochs lie."
    )


# ---------------------------------------------------------------------------------------------
# Stages 2 and 3
# ---------------------------------------------------------------------------------------------


@check
def dropout_gap(case: Case) -> Finding:
    table = published.read_table("XIII")
    none, some = table.iloc[0], table.iloc[1:]
    train = none["train_top1"] - some["train_top1"]
    test = none["test_top1"] - some["test_top1"]
    gap = some["train_test_difference"]
    return decide(bool((train > 0).all() and (test > 0).all())), (
        f"The gap falls from {none['train_test_difference']} to {gap.min()}–{gap.max()} points "
        f"while training accuracy loses {train.min():.1f} to {train.max():.1f} and test accuracy "
        f"{test.min():.1f} to {test.max():.1f}."
    )


@check
def cat_and_dog(case: Case) -> Finding:
    table = published.read_table("XII").set_index("label")[["cat", "deer", "dog"]]
    names = table.index.tolist()
    pairs = {
        f"{a} and {b}": int(table.loc[a, b] + table.loc[b, a])
        for place, a in enumerate(names)
        for b in names[place + 1 :]
    }
    share = pairs["cat and dog"] / sum(pairs.values())
    elsewhere = IMAGES["test"] // 10 - table.sum(axis=1)["cat"]
    told = enumerate_words(f"{count} are {name}" for name, count in pairs.items())
    return decide(share > 0.5), (
        f"Of {sum(pairs.values())} images that Table XII mistakes among the three, {told}; more "
        f"cats are taken for one of the seven other classes ({elsewhere}) than for deer "
        f"({table.loc['cat', 'deer']})."
    )


@check
def step_gain(case: Case) -> Finding:
    from statsmodels.stats.proportion import proportions_ztest

    images = IMAGES["test"]
    before = find_row("XI", top_k=1)["test"]
    after = find_row("XV", model="Improved run 13")["test_top1"]
    counts = [round(share / 100 * images) for share in (after, before)]
    p = float(proportions_ztest(counts, [images] * 2)[1])
    step = counts[0] - counts[1]
    limit = 100 * (step / 1.96) ** 2 / images  # McNemar: z = step / √(images that differ)
    noise = 100 * step / images / (1.96 * math.sqrt(2))
    return "undecidable" if p > 0.05 else "refuted", (
        f"{counts[0]:,} and {counts[1]:,} of {images:,} images: p = {p:.2f} if tested on "
        f"different images; on the same ones p < 0.05 only if the networks disagree on fewer than "
        f"{limit:.1f} % of them, and as a gain of the setting only if single seeds scatter by less "
        f"than {noise:.2f} points; neither is printed."
    )


@check
def deep_networks(case: Case) -> Finding:
    models = published.read_table("XV").set_index("model")["test_top1"]
    behind = models["Pre-trained ResNet-18"] - models["Pre-trained DenseNet-121"]
    ratio = case.says["densenet"] / case.says["epochs"]
    return "undecidable" if ratio < 1 else "refuted", (
        f"DenseNet-121 is {behind:.2f} points behind the pre-trained ResNet-18 after "
        f"{100 * ratio:.0f} % of its epochs, at a constant rate; depth and training length cannot "
        "be told apart."
    )
