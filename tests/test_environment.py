"""One environment, said in three files, and the commands that the README promises."""

import gzip
import importlib.metadata
import os
import re
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from cifarlib import cli, extras, paths

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [
    requirement
    for text in [*PROJECT["dependencies"], *(text for texts in EXTRAS.values() for text in texts)]
    if (requirement := Requirement(text)).name != PROJECT["name"]
]


CONSTRAINTS = [
    line
    for line in (paths.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]


@pytest.fixture(scope="module")
def pinned() -> dict[str, str]:
    """Canonical package name → version in constraints.txt."""
    pairs = [line.split("==") for line in CONSTRAINTS if "==" in line]
    return {canonicalize_name(name): version for name, version in pairs}


@pytest.fixture(scope="module")
def environment() -> dict:
    return yaml.safe_load((paths.ROOT / "environment.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_every_dependency_is_pinned_within_its_range(requirement, pinned):
    name = canonicalize_name(requirement.name)
    assert name in pinned
    assert Version(pinned[name]) in requirement.specifier


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_the_pinned_version_is_installed(requirement, pinned):
    installed = Version(importlib.metadata.version(requirement.name))
    assert installed.public == pinned[canonicalize_name(requirement.name)]


def test_a_plain_installation_is_without_torch():
    plain = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert not plain & extras.EXTRAS.keys()


@pytest.mark.parametrize(("package", "extra"), extras.EXTRAS.items())
def test_a_package_that_is_missing_is_in_the_extra_that_is_named(package, extra):
    assert package in {Requirement(text).name for text in EXTRAS[extra]}


def test_the_extra_for_tests_installs_every_other():
    (ours,) = (r for text in EXTRAS["test"] if (r := Requirement(text)).name == PROJECT["name"])
    assert ours.extras == EXTRAS.keys() - {"test"}


def test_constraints_are_pins_for_every_platform():
    others = [line for line in CONSTRAINTS if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    assert others == []


def test_the_conda_environment_is_the_same(environment):
    python, pip, via_pip = environment["dependencies"]
    assert pip == "pip"
    version = re.fullmatch(r"python=([\d.]+)", python)
    assert Version(version[1]) in SpecifierSet(PROJECT["requires-python"])
    constraint, project = via_pip["pip"]
    assert constraint.split() == ["--constraint", "constraints.txt"]
    assert project.split() == ["--editable", ".[test]"]


def test_the_readme_is_short_and_names_the_commands():
    text = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    first = re.search(r"\]\(([^)]+)\)", text)
    assert first[1] == "build/lite/report.html"
    assert text.index("make report") < text.index("make test") < text.index("cifarlib sweep")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CLUSTERS.md"])
def test_documents_name_commands_and_targets_that_exist(name):
    text = (paths.ROOT / name).read_text(encoding="utf-8")
    commands = set(re.findall(r"(?:^|`)cifarlib ([a-z]+)", text, re.MULTILINE))
    targets = set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE))
    assert commands | targets
    known = cli._parser().format_help()
    assert [command for command in commands if f"    {command}" not in known] == []
    makefile = (paths.ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets <= set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))


# ---------------------------------------------------------------------------------------------
# The Makefile
# ---------------------------------------------------------------------------------------------


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What make would do in a fresh checkout; nothing is run."""
    command = ["make", "--dry-run", "--always-make", *arguments]
    # Under `make test`, the outer make's variables would change what the inner one prints.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, env=env)


@pytest.mark.parametrize("target", ["report", "test", "smoke", "sweep", "status", "lab", "bench"])
def test_the_makefile_names_its_target_at_the_top(target):
    assert make(target).returncode == 0
    text = (paths.ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"\n# make {target} " in f"\n{text}"


def test_make_report_renders_scale_lite_without_training():
    planned = make("report").stdout
    assert "cifarlib report --scale lite" in planned
    assert not re.search(r"cifarlib (sweep|run|verify)|\[test\]", planned)


def test_make_smoke_trains_and_reports_at_scale_smoke():
    planned = make("smoke").stdout
    assert planned.index("cifarlib sweep --scale smoke") < planned.index("cifarlib report --scale")
    assert "--editable '.[test]'" in planned


def test_make_reproduce_verifies_the_run_that_is_named():
    planned = make("reproduce", "RUN=stage1-daa1/13").stdout
    assert re.search(r"cifarlib verify --scale lite +--run 'stage1-daa1/13'", planned)
    refused = make("reproduce")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "name a recorded run" in refused.stderr


def test_make_test_and_make_faults_run_every_tier_between_them():
    assert re.search(r"pytest .*-m 'not long'", make("test").stdout)
    assert re.search(r"pytest -m long", make("faults").stdout)


def test_continuous_integration_lints_and_runs_every_tier():
    script = paths.ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    assert {"make .venv/.installed", "make lint", "make test"} <= set(lines)
    assert any(line.startswith(".venv/bin/pytest") and line.endswith("-m long") for line in lines)


WORKFLOWS = sorted((paths.ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request) -> dict:
    return yaml.safe_load(request.param.read_text(encoding="utf-8"))


def steps_of(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_workflows_pin_actions_by_major_version_and_use_no_secret(workflow):
    used = [step["uses"] for step in steps_of(workflow) if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"actions/[a-z-]+@v\d+", name)] == []
    assert "secrets." not in str(workflow)


def test_a_workflow_runs_continuous_integration():
    assert ".ci/run" in {step.get("run") for step in steps_of(read_workflow("check"))}


def test_the_page_is_compared_before_it_is_published():
    steps = steps_of(read_workflow("pages"))
    order = [step.get("run", step.get("uses", "")) for step in steps]
    compared = next(i for i, text in enumerate(order) if "git diff --exit-code" in text)
    assert order.index("make report") < compared
    assert compared < next(i for i, text in enumerate(order) if "upload-pages" in text)


def read_workflow(name: str) -> dict:
    return yaml.safe_load((paths.ROOT / ".github/workflows" / f"{name}.yml").read_text("utf-8"))


def test_the_published_page_loads_quickly():
    page = (paths.BUILD / "lite" / "report.html").read_bytes()
    assert len(gzip.compress(page)) < 1_500_000  # as a server sends it; grows with each record
