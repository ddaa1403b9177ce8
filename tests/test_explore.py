"""The panels over a build folder: without a kernel, and in a real JupyterLab."""

import asyncio
import html
import re

import papermill
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import TINY, make_record, tiny_conditions, tiny_store
from lab import browse, find_browser, panel, serve
from test_collection import STUDY, change, open_tiny, write_runs

from cifarlib import paths
from cifarlib.config import run_id
from cifarlib.errors import DataError
from cifarlib.explore import launchpad
from cifarlib.explore.explorer import Explorer, open_explorer
from cifarlib.explore.launch import Progress
from cifarlib.explore.launchpad import Launchpad
from cifarlib.records import RecordStore

PANELS = ("choose", "curves", "inspect", "compare", "train")


def text_of(widget) -> str:
    """Everything that the HTML widgets below a widget say."""
    own = widget.value if type(widget).__name__ == "HTML" else ""
    text = "\n".join([own, *(text_of(child) for child in getattr(widget, "children", ()))])
    return re.sub(r"<style>.*?</style>|base64,[\w+/=]+", "", text, flags=re.DOTALL)


@pytest.fixture
def explorer(tmp_path) -> Explorer:
    return Explorer(write_runs(tmp_path, learning_rate=0.05))


# ---------------------------------------------------------------------------------------------
# Choosing
# ---------------------------------------------------------------------------------------------


def test_the_list_holds_every_run_best_first_and_the_best_are_chosen(explorer):
    assert [name for _, name in explorer.list.options] == list(explorer.runs.frame.index)
    assert explorer.chosen == list(explorer.runs.frame.index[:3])
    line = explorer.list.options[0][0]
    assert f"{explorer.runs.frame['test_top1'].iloc[0]:.1f}" in line
    assert len({len(line) for line, _ in explorer.list.options}) == 1  # columns stand in place


def test_filters_narrow_the_list_and_keep_the_choice(explorer):
    said = explorer.choose()
    wanted = explorer.list.options[5][1]
    explorer.list.value = [wanted]
    rate = explorer.runs.frame.loc[wanted, "learning_rate"]
    explorer.facets["learning_rate"].value = [rate]
    assert explorer.chosen == [wanted]
    assert set(explorer.shown["learning_rate"]) == {rate}
    assert f"{len(explorer.shown)} of 9 runs pass the filters, 1 are chosen" in text_of(said)


def test_the_panel_counts_what_is_pending_and_own(explorer):
    study = len(explorer.runs.study)
    said = html.unescape(text_of(explorer.choose()))
    assert f"{study - 8} of the study's {study} are pending, 1 are own" in said


def test_means_follow_the_filter(explorer):
    said = explorer.choose()
    explorer.facets["stage"].value = ["own"]
    (own,) = explorer.shown["test_top1"]
    assert '<td class="number">0.05</td><td class="number">1</td>' in text_of(said)
    assert f"{own:.1f}" in text_of(said)


def test_a_new_run_is_chosen_though_a_filter_hid_it(explorer):
    explorer.facets["stage"].value = ["own"]
    (condition,) = tiny_conditions("stage1-base/1")
    explorer.runs.results.store.write(make_record(condition))
    explorer.refresh(choose=condition.run_id)
    assert condition.run_id in explorer.chosen
    assert len(explorer.list.options) == 10


def test_curves_name_the_chosen_runs(explorer):
    said = explorer.curves()
    explorer.list.value = [explorer.list.options[4][1]]
    name = explorer.runs.frame["name"].iloc[4]
    assert f'alt="test set top-1 accuracy, % by epoch of {name}"' in text_of(said)
    explorer.list.value = []
    assert "Choose runs in the list above." in text_of(said)


# ---------------------------------------------------------------------------------------------
# One run, two runs
# ---------------------------------------------------------------------------------------------


def test_mistakes_need_the_data_set_and_say_so(explorer, monkeypatch):
    def absent(name):
        raise DataError("the set was not found; fetch it")

    monkeypatch.setattr("cifarlib.data.load", absent)
    said = text_of(explorer.inspect())
    assert "The images cannot be shown: the set was not found; fetch it." in said
    assert "heat maps" in said


def test_two_runs_are_told_apart_or_not(tmp_path):
    write_runs(tmp_path)
    tiny_store(tmp_path)
    explorer = Explorer(open_tiny(tmp_path))
    said = text_of(explorer.compare())
    first, second = (explorer.runs.records[name] for name in explorer.runs.frame.index[:2])
    assert re.search(r"of 10: \+?−?\d+\.\d\d points, p = \d\.\d+ \(McNemar, exact", said)
    assert "distinguishable at the level of 5 %" in said
    assert f"{first.accuracy('test'):.2f}" in said
    assert f"{second.accuracy('validation'):.2f}" in said


def test_markup_in_a_name_is_text(explorer):
    explorer.runs.faults.append("<script>alert(1)</script>")
    said = text_of(explorer.choose())
    assert "&lt;script&gt;" in said
    assert "<script>" not in said


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------


class MadeUpLaunch:
    """Hears three epochs, then what its process would have written."""

    ending = Progress("done")

    def __init__(self, config, store, name, device):
        self.config, self.store, self.told = config, store, 0
        self.stopped = False

    def poll(self, seconds=0.0):
        self.told += 1
        if self.stopped:
            return Progress("stopped")
        if self.told < 4:
            epochs = {e: 20.0 + e for e in range(1, self.told + 1)}
            return Progress("training", 20 * self.told, self.told, epochs)
        if self.ending.state == "done":
            self.store.write(make_record(change_to(self.config)))
        return self.ending

    def stop(self):
        self.stopped = True


def change_to(config):
    (condition,) = tiny_conditions("stage1-daa1/1")
    return change(condition, **{name: getattr(config, name) for name in type(config).model_fields})


@pytest.fixture
def pad(explorer, monkeypatch) -> Launchpad:
    monkeypatch.setattr(launchpad, "Launch", MadeUpLaunch)
    monkeypatch.setattr(launchpad, "PAUSE", 0)
    pad = Launchpad(explorer.runs, lambda name: explorer.refresh(choose=name))
    pad.explorer = explorer
    return pad


def press_train(pad: Launchpad, then=lambda: None) -> None:
    async def press():
        pad.button.click()
        then()
        if pad.following:
            await pad.following

    asyncio.run(press())


def test_the_form_starts_from_a_run_and_says_what_is_changed(pad):
    assert "It is not trained twice" in pad.check.value
    pad.form.entries()["weight_decay"].set(0.25)
    assert re.search(r"Run [0-9a-f]{16}, about ", pad.check.value)
    assert "<td>weight_decay</td>" in pad.check.value
    assert "<td>0.25</td>" in pad.check.value


def test_an_invalid_form_cannot_be_trained(pad):
    pad.form.entries()["learning_rate"].set(-1.0)
    assert "input should be greater than 0" in pad.check.value
    assert pad.button.disabled
    pad.form.entries()["learning_rate"].set(0.1)
    assert not pad.button.disabled


def test_a_trained_run_appears_among_the_others_and_can_be_started_from(pad):
    pad.form.entries()["weight_decay"].set(0.25)
    name = run_id(pad.config)
    press_train(pad)
    assert "Trained: own: " in pad.outcome.value
    assert name in pad.explorer.chosen
    assert name in dict(pad.start.options).values()
    reached = pad.runs.records[name].accuracy("validation", epoch=pad.config.epochs)
    assert f'alt="Validation accuracy by epoch, {reached:.1f} % at the end."' in pad.plot.value
    assert pad.halt.disabled
    assert not pad.button.disabled


def test_a_recorded_run_is_shown_and_not_trained(pad, monkeypatch):
    monkeypatch.setattr(launchpad, "Launch", None)
    press_train(pad)
    assert "is recorded already" in pad.outcome.value


def test_training_can_be_stopped(pad):
    pad.form.entries()["weight_decay"].set(0.25)
    press_train(pad, then=lambda: pad.halt.click())
    assert "Stopped." in pad.outcome.value
    assert len(pad.runs.records) == 9
    assert not pad.button.disabled


def test_a_failure_is_a_sentence(pad, monkeypatch):
    monkeypatch.setattr(MadeUpLaunch, "ending", Progress("failed", sentence="the disk is full"))
    pad.form.entries()["weight_decay"].set(0.25)
    press_train(pad)
    assert "It was not trained: the disk is full" in pad.outcome.value
    assert 'role="alert"' in pad.outcome.value


def test_units_are_of_fields_that_there_are(pad):
    assert set(launchpad.UNITS) <= set(pad.form.entries())


# ---------------------------------------------------------------------------------------------
# An empty folder, and the notebook itself
# ---------------------------------------------------------------------------------------------


def test_an_empty_folder_says_how_to_fill_it(tmp_path):
    explorer = open_explorer("smoke", ["data.name=cifar10"], tmp_path)
    said = {name: text_of(getattr(explorer, name)()) for name in PANELS}
    assert "`cifarlib sweep --scale smoke --set &#x27;data.name=cifar10&#x27;`" in said["choose"]
    assert "Choose runs" in said["curves"]
    assert "No run is recorded yet." in said["inspect"]
    assert "No run is recorded yet." in said["compare"]
    assert "about" in said["train"]


def test_the_notebook_runs_without_a_browser(tmp_path):
    write_runs(tmp_path / "build", STUDY[:2])
    done = papermill.execute_notebook(
        paths.NOTEBOOKS / "explore.ipynb",
        tmp_path / "done.ipynb",
        {"overrides": list(TINY), "build": str(tmp_path / "build")},
        progress_bar=False,
    )
    shown = [o for c in done.cells if c.cell_type == "code" for o in c.outputs if "data" in o]
    views = [o for o in shown if "application/vnd.jupyter.widget-view+json" in o["data"]]
    assert len(views) == len(PANELS)


@pytest.mark.skipif(find_browser() is None, reason="there is no Chromium on this machine")
def test_filter_compare_and_train_in_jupyterlab(tmp_path):
    write_runs(tmp_path / "build")
    store = tiny_store(tmp_path / "build")
    parameters = {"overrides": list(TINY), "build": str(store.folder)}
    with serve(tmp_path / "home", parameters) as address, browse(address) as page:
        chooser, comparison, pad = (panel(page, n) for n in ("choose", "compare", "train"))
        chooser.get_by_text("8 of 8 runs pass the filters").wait_for()
        chooser.get_by_label("weight decay").select_option(index=0)
        chooser.get_by_text("4 of 8 runs pass the filters").wait_for()
        chooser.get_by_role("button", name="Clear filters").click()
        chooser.get_by_text("8 of 8 runs pass the filters").wait_for()

        comparison.get_by_label("first run").select_option(index=2)
        comparison.get_by_label("second run").select_option(index=7)
        comparison.get_by_text("McNemar, exact, two-sided").wait_for()

        rate = pad.get_by_label("learning rate", exact=True)
        rate.fill("-1")
        rate.press("Enter")
        pad.get_by_text("input should be greater than 0").wait_for()
        rate.fill("0.05")
        rate.press("Enter")
        pad.get_by_text(re.compile("Run [0-9a-f]{16}, about")).wait_for()
        pad.locator("button", has_text="Train").click()
        pad.get_by_text("Trained: own: ").wait_for()
        chooser.get_by_text("9 of 9 runs pass the filters").wait_for()
        page.screenshot(path=tmp_path / "explore.png")
        found = Axe().run(page, context=".cifarlib").response["violations"]
        errors = [text for kind, text in page.said if kind == "error"]
    assert errors == []
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found] == []
    assert len(RecordStore(store.folder).run_ids()) == 9
