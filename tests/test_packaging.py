"""The two wheels contain the core and each first-party plug-in, their entry points and licences, and nothing else."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
WORLDS = ROOT / "plugins" / "worlds"
LARGEST_WHEEL = {ROOT: 8e6, WORLDS: 24e6}


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def packages(folder: Path) -> list[Path]:
    return [folder / package for package in project(folder)["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]


def build(root: Path, target: str, folder: Path) -> Path:
    # Without isolation: an isolated build would fetch its own tools.
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=root, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": ""})
    (path,) = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return path


PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/[!_]*/pyproject.toml"))
PROJECT = project(ROOT)
PACKAGES = [*packages(ROOT), *packages(WORLDS)]
PUBLISHED = pytest.mark.parametrize("published", [ROOT, WORLDS], ids=["composable-energy", "composable-energy-worlds"])


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[Path, Path]:
    return {root: build(root, "wheel", tmp_path_factory.mktemp("wheel")) for root in (ROOT, WORLDS)}


def test_each_folder_of_plugins_is_a_project():
    folders = {path for path in (ROOT / "plugins").iterdir() if path.is_dir() and not path.name.startswith(("_", "."))}
    assert folders == set(PLUGINS)


def test_the_root_declares_the_entry_points_of_all_plugins():
    union: dict[str, dict[str, str]] = {}
    for folder in PLUGINS:
        for group, entries in project(folder)["project"].get("entry-points", {}).items():
            assert not union.get(group, {}).keys() & entries.keys(), f"{folder.name} takes a name that another plug-in has"
            union.setdefault(group, {}).update(entries)
    own = {
        group: kept
        for group, entries in PROJECT["project"]["entry-points"].items()
        if (kept := {name: value for name, value in entries.items() if "[worlds]" not in value})
    }
    assert own == union


def test_the_root_declares_the_entry_points_of_the_worlds_with_their_extra():
    entries = [value for group in PROJECT["project"]["entry-points"].values() for value in group.values()]
    of_worlds = {package.name for package in packages(WORLDS)}
    assert {value.endswith(" [worlds]") for value in entries if re.split(r"[.:]", value)[0] in of_worlds} == {True}
    assert PROJECT["project"]["optional-dependencies"]["worlds"] == [f"composable-energy-worlds=={PROJECT['project']['version']}"]


def test_the_wheels_and_tools_know_all_plugins():
    packed = {package for folder in PLUGINS for package in folder.glob("composable_energy_*") if (package / "__init__.py").exists()}
    assert sorted(PACKAGES) == sorted({ROOT / "composable_energy"} | packed)
    assert all((package / "py.typed").exists() for package in PACKAGES)
    names = {f"plugins/{folder.name}" for folder in PLUGINS}
    pytest_options = PROJECT["tool"]["pytest"]["ini_options"]
    known, typed = set(pytest_options["pythonpath"]), set(PROJECT["tool"]["pyright"]["extraPaths"])
    assert (known, typed) == ({"."} | names, names)
    assert set(pytest_options["testpaths"]) == {"tests", "benchmarks/tests"} | {f"{name}/tests" for name in names}
    assert {ROOT / path for path in PROJECT["tool"]["pyright"]["include"]} == set(PACKAGES)


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_a_plugin_is_whole_and_never_uploaded(folder):
    about = project(folder)["project"]
    private = "Private :: Do Not Upload" in about["classifiers"]
    assert private == (folder != WORLDS), "installing it beside the wheel that has it, and removing one, deletes the other's files"
    assert about["name"] == f"composable-energy-{folder.name}"
    assert (folder / "README.md").exists()
    assert (folder / "tests").is_dir() and not (folder / "tests" / "__init__.py").exists()


def test_dependencies_of_plugins_are_those_of_the_wheel():
    def names(requirements):
        return {re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower() for requirement in requirements}

    own = names(PROJECT["project"]["dependencies"]) | {"composable-energy"} | {project(folder)["project"]["name"] for folder in PLUGINS}
    for folder in PLUGINS:
        assert names(project(folder)["project"].get("dependencies", [])) <= own, folder.name


@pytest.mark.full
@PUBLISHED
def test_a_wheel_is_small_and_holds_all_of_its_packages_and_nothing_else(wheels, published):
    names = zipfile.ZipFile(wheels[published]).namelist()
    (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
    assert {name.split("/")[0] for name in names} - {info} == {package.name for package in packages(published)}
    unwanted = r"(^|/)(tests?|plugins)/.*|(^|/)test_|conftest|\.(pyc|pt|pth|pkl|npy)$|/\."
    assert [name for name in names if re.search(unwanted, name)] == []
    sources = {
        f"{package.name}/{path.relative_to(package).as_posix()}"
        for package in packages(published)
        for path in package.rglob("*")
        if path.suffix in (".py", ".safetensors", ".typed", ".json", ".toml") and not re.search(r"__pycache__|/\.", path.as_posix())
    }
    assert sources | {f"{info}/licenses/{name}" for name in ("LICENSE", "LICENSE-WEIGHTS.md")} <= set(names)
    assert wheels[published].stat().st_size < LARGEST_WHEEL[published]


@pytest.mark.full
@PUBLISHED
def test_a_source_archive_builds_the_same_wheel(wheels, published, tmp_path):
    archive = build(published, "sdist", tmp_path / "archive")
    with tarfile.open(archive) as file:
        assert [name for name in file.getnames() if re.search(r"__pycache__|\.pyc$|/\.(?!gitignore)|\.ipynb_checkpoints", name)] == []
        file.extractall(tmp_path)
    (source,) = tmp_path.glob("composable_energy*")
    assert archive.stat().st_size < 24e6
    assert build(source, "wheel", tmp_path / "wheel").read_bytes() == wheels[published].read_bytes()


@PUBLISHED
def test_the_origin_of_all_weights_is_reported(published):
    text = (published / "LICENSE-WEIGHTS.md").read_text()
    folders = {path.parent for package in packages(published) for path in package.rglob("*.safetensors")}
    told = [next(ROOT.glob(f"plugins/*/{path}")) for path in re.findall(r"^\| `(\S+)` \|", text, re.M)]
    assert folders and all(any(path.is_relative_to(one) for one in told) for path in folders)
    assert all(path.is_dir() for path in told)
    assert (published / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_version_is_the_same_everywhere():
    import composable_energy

    worlds = project(WORLDS)["project"]
    assert PROJECT["project"]["version"] == worlds["version"] == composable_energy.__version__
    assert f"composable-energy=={composable_energy.__version__}" in worlds["dependencies"]
    assert f"version: {composable_energy.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## \[({re.escape(composable_energy.__version__)}|Unreleased)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_every_tool_is_pinned():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {line.split("==")[0] for line in lines}
    assert all(re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; python(_full)?_version [<>=]+ \"[\d.]+\")?", line) for line in lines)
    about = [project(folder)["project"] for folder in (ROOT, WORLDS)]
    extras = [names for each in about for names in each["optional-dependencies"].values()]
    lists = [PROJECT["build-system"]["requires"], *(each["dependencies"] for each in about), *extras]
    wanted = [name for names in lists for name in names]
    assert {re.split(r"[\[<>=!~ ]", name)[0] for name in wanted} - {"composable-energy", "composable-energy-worlds"} <= pins
    assert "torch==2.13.0" in lines
