"""Kernels that are forked from one process: alike, apart, and gone when the report is made."""

import asyncio
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from cifarlib.report import kernels, notebooks
from cifarlib.report.kernels import serve_kernels

pytestmark = pytest.mark.integration

forks = pytest.mark.skipif(sys.platform == "darwin", reason="on macOS no kernel is forked")


@pytest.mark.parametrize("forked", [pytest.param(True, marks=forks), False])
def test_kernels_share_imports_and_nothing_else(tmp_path, forked, monkeypatch):
    monkeypatch.setattr(kernels, "FORKS", forked)
    code = (
        "import colorsys, os, subprocess\n"
        "print(os.getppid(), hasattr(colorsys, 'seen'), subprocess.run(['false']).returncode)\n"
        "colorsys.seen = True"
    )
    names = [tmp_path / f"0{number}_a.ipynb" for number in range(3)]
    for name in names:
        nbformat.write(new_notebook(cells=[new_code_cell(code)]), name)
    assert notebooks._find_imports(names) == ["colorsys"]
    executed = notebooks.execute_all(names, tmp_path / "out", [{}] * 3)
    said = {nbformat.read(path, 4).cells[0].outputs[0].text for path in executed}
    assert len(said) == 1  # one parent
    assert said.pop().split()[1:] == ["False", "1"]


@forks
def test_kernels_end_with_what_serves_them():
    async def start(manager):
        await manager.start_kernel()
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=60)
        client.stop_channels()
        return manager.provisioner.process

    with serve_kernels(["no_such_module"]) as manager_class:
        process = asyncio.run(start(manager_class()))
        assert process.poll() is None
    assert process.wait(60) is not None
