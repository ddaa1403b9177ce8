"""A JupyterLab of its own, with a notebook open in a headless Chromium."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import papermill
from playwright.sync_api import Browser, Page, sync_playwright

from cifarlib import paths

WINDOW = {"width": 1400, "height": 900}
PATIENCE = 120_000  # ms, for what takes a moment on an idle machine

SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "apputils-extension/themes": {"theme": "JupyterLab Light"},
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is on the page
}


def find_browser() -> str | None:
    """A Chromium on this machine."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextlib.contextmanager
def serve(home: Path, notebooks: Mapping[str, dict[str, object]]) -> Iterator[str]:
    """A JupyterLab of no user's settings, with notebooks and their parameters; its address."""
    work = home / "notebooks"
    work.mkdir(parents=True)
    for name, parameters in notebooks.items():
        papermill.execute_notebook(
            paths.NOTEBOOKS / name,
            work / name,
            parameters,
            prepare_only=True,
            progress_bar=False,
        )
    for part, content in SETTINGS.items():
        place = home / "settings" / "@jupyterlab" / f"{part}.jupyterlab-settings"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(content))
    environment = os.environ | {
        "HOME": str(home),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(home / "matplotlib")),
        "PYTHONPATH": str(paths.ROOT),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={work}",
    ]  # fmt: skip
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api", process, home / "server.log")
        yield f"http://127.0.0.1:{port}/lab"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=5).close()
            return
        time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not start: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=find_browser(), args=options)
        yield browser
        browser.close()


def browse(browser: Browser, address: str, name: str, wanted: str) -> Page:
    """A notebook alone in a browser, its cells running and one's output there."""
    page = browser.new_page(viewport=WINDOW)
    page.set_default_timeout(PATIENCE)
    page.said = []  # type: ignore[attr-defined]
    page.on("console", lambda m: page.said.append((m.type, m.text)))  # type: ignore[attr-defined]
    page.on("pageerror", lambda error: page.said.append(("error", str(error))))  # type: ignore[attr-defined]
    page.goto(f"{address}/workspaces/{Path(name).stem}/tree/{name}")  # else others are open, too
    page.locator(".jp-Notebook .jp-CodeCell").last.wait_for()
    page.get_by_text("| Idle").first.wait_for()
    page.keyboard.press("Control+b")  # the file browser takes room
    run_all(page, wanted)
    return page


def run_all(page: Page, wanted: str) -> None:
    """Run every cell of the open notebook, until an output is there."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.locator(wanted).first.wait_for()
