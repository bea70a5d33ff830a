"""The wheel contains the core, each first-party plug-in and their entry points, and nothing else."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
MOST_WEIGHTS = {"composable_energy_comet": 2**20, "composable_energy_faces": 10 * 2**20, "composable_energy_scenes": 14_000_000}


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/[!_]*/pyproject.toml"))
PROJECT = project(ROOT)
PACKAGES = [ROOT / package for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation: an isolated build would fetch its own tools.
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": ""})
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_each_folder_of_plugins_is_a_project():
    folders = {path for path in (ROOT / "plugins").iterdir() if path.is_dir() and not path.name.startswith(("_", "."))}
    assert folders == set(PLUGINS)


def test_the_root_declares_the_entry_points_of_all_plugins():
    union: dict[str, dict[str, str]] = {}
    for folder in PLUGINS:
        for group, entries in project(folder)["project"].get("entry-points", {}).items():
            assert not union.get(group, {}).keys() & entries.keys(), f"{folder.name} takes a name that another plug-in has"
            union.setdefault(group, {}).update(entries)
    assert PROJECT["project"]["entry-points"] == union


def test_the_root_packs_the_packages_of_all_plugins():
    packed = {package for folder in PLUGINS for package in folder.glob("composable_energy_*") if (package / "__init__.py").exists()}
    assert set(PACKAGES) == {ROOT / "composable_energy"} | packed


def test_tools_know_all_plugins():
    names = {f"plugins/{folder.name}" for folder in PLUGINS}
    pytest_options = PROJECT["tool"]["pytest"]["ini_options"]
    known, typed = set(pytest_options["pythonpath"]), set(PROJECT["tool"]["pyright"]["extraPaths"])
    assert (known, typed) == ({"."} | names, names)
    assert set(pytest_options["testpaths"]) == {"tests", "benchmarks/papers/tests", "benchmarks/posteriors/tests"} | {
        f"{name}/tests" for name in names
    }
    assert {ROOT / path for path in PROJECT["tool"]["pyright"]["include"]} == set(PACKAGES)


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
def test_a_plugin_is_whole_and_never_uploaded(folder):
    about = project(folder)["project"]
    assert "Private :: Do Not Upload" in about["classifiers"], "installing it beside the wheel, and removing one, deletes the other's files"
    assert about["name"] == f"composable-energy-{folder.name}"
    assert (folder / "README.md").exists()
    assert (folder / "tests").is_dir() and not (folder / "tests" / "__init__.py").exists()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_package_is_typed(package):
    assert (package / "py.typed").exists()


def test_dependencies_of_plugins_are_those_of_the_wheel():
    def names(requirements):
        return {re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower() for requirement in requirements}

    own = names(PROJECT["project"]["dependencies"]) | {"composable-energy"} | {project(folder)["project"]["name"] for folder in PLUGINS}
    for folder in PLUGINS:
        assert names(project(folder)["project"].get("dependencies", [])) <= own, folder.name


@pytest.mark.slow
def test_the_wheel_holds_packages_and_metadata_only(wheel):
    heads = {name.split("/")[0] for name in wheel.namelist()}
    info = {head for head in heads if head.endswith(".dist-info")}
    assert heads - info == {package.name for package in PACKAGES} and len(info) == 1
    assert [name for name in wheel.namelist() if re.search(r"(^|/)(tests?|plugins)/.*|(^|/)test_|conftest|\.pyc$|/\.", name)] == []


@pytest.mark.slow
def test_the_wheel_holds_every_module_of_the_packages(wheel):
    sources = {
        f"{package.name}/{path.relative_to(package).as_posix()}"
        for package in PACKAGES
        for path in package.rglob("*")
        if path.suffix in (".py", ".safetensors", ".typed", ".json", ".toml")
        and "__pycache__" not in path.parts
        and path.parent.name[0] != "."
    }
    assert sources <= set(wheel.namelist())


def test_weights_in_the_wheel_are_small(wheel):
    weights = dict.fromkeys((package.name for package in PACKAGES), 0)
    for item in wheel.infolist():
        if item.filename.endswith(".safetensors"):
            weights[item.filename.split("/")[0]] += item.file_size
    assert {name: size for name, size in weights.items() if size > MOST_WEIGHTS.get(name, 0)} == {}
    assert [item.filename for item in wheel.infolist() if item.filename.endswith((".pt", ".pth", ".pkl", ".npy"))] == []


def test_the_version_is_the_same_everywhere():
    import composable_energy

    assert PROJECT["project"]["version"] == composable_energy.__version__
    assert f"version: {composable_energy.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## \[({re.escape(composable_energy.__version__)}|Unreleased)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_every_tool_is_pinned():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = {line.split("==")[0] for line in lines}
    assert all(re.fullmatch(r"[a-z0-9.-]+==[\w.]+( ; python(_full)?_version [<>=]+ \"[\d.]+\")?", line) for line in lines)
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"], *(name for extra in extras for name in extra)]
    assert {re.split(r"[\[<>=!~ ]", name)[0] for name in wanted} <= pins
    assert "torch==2.13.0" in lines
