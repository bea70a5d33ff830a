"""The wheels contain the core, each first-party plug-in and nothing else; `new-plugin` makes projects that pass their tests with them."""

import os
import re
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

import composable_energy as ce
from composable_energy_cli import main
from tests.new_projects import KINDS, install_projects, make_environment, run, write_projects

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
WORLDS = ROOT / "plugins" / "worlds"
LARGEST_WHEEL = {ROOT: 8e6, WORLDS: 24e6}
USE = """
import composable_energy as ce
assert "venv" in ce.__file__, ce.__file__
rows = {row.name: row for row in ce.plugins() if row.name.startswith("soft-")}
assert {row.distribution for row in rows.values()} == set(rows) == {"soft-" + kind for kind in KINDS}, rows
assert all(row.state == "not-loaded" for row in rows.values()), rows
E = ce.load("soft-energy", radius=2.0) & ~ce.load("soft-energy", radius=0.5)
points = E.sample(50, sampler="soft-sampler", scale=0.5, steps=50, seed=0)
(2 * ce.load("soft-energy")).save("saved")
assert ce.load("saved")(points).equal(2 * ce.load("soft-energy")(points))
print(ce.get("encoder", "soft-encoder", outputs=4)(points).shape)
print(ce.get("recipe", "soft-recipe").settings["data"]["size"], ce.get("world", "soft-world").draw(2).images.shape)
"""
COMMANDS = {
    "energy": ("sample", "soft-energy", "--steps", "20", "--seed", "0", "-o", "points.npy"),
    "sampler": ("sample", "soft-energy", "--sampler", "soft-sampler", "--option", "scale=0.5", "--steps", "20", "-o", "points.npy"),
    "encoder": ("plugins", "--load", "--json"),
    "recipe": ("recipes", "soft-recipe"),
    "world": ("render", "soft-world", "-n", "8", "--seed", "0", "-o", "pictures"),
}


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
    assert ({path for path in (ROOT / "plugins").iterdir() if path.is_dir() and not path.name.startswith(("_", "."))}) == set(PLUGINS)


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
    assert about["name"] == f"composable-energy-{folder.name}" and (folder / "README.md").exists()
    assert (folder / "tests").is_dir() and not (folder / "tests" / "__init__.py").exists()


def test_dependencies_of_plugins_are_those_of_the_wheel():
    names = lambda requirements: {re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower() for requirement in requirements}
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
    assert archive.stat().st_size < 24e6 and build(source, "wheel", tmp_path / "wheel").read_bytes() == wheels[published].read_bytes()


@PUBLISHED
def test_the_origin_of_all_weights_is_reported(published):
    text = (published / "LICENSE-WEIGHTS.md").read_text()
    folders = {path.parent for package in packages(published) for path in package.rglob("*.safetensors")}
    told = [next(ROOT.glob(f"plugins/*/{path}")) for path in re.findall(r"^\| `(\S+)` \|", text, re.M)]
    assert folders and all(any(path.is_relative_to(one) for one in told) for path in folders)
    assert all(path.is_dir() for path in told) and (published / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_version_is_the_same_everywhere():
    worlds = project(WORLDS)["project"]
    assert PROJECT["project"]["version"] == worlds["version"] == ce.__version__
    assert f"composable-energy=={ce.__version__}" in worlds["dependencies"]
    assert f"version: {ce.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## \[({re.escape(ce.__version__)}|Unreleased)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)


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


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The Python of an environment with the wheel and a project of each kind, whose tests `make wheel` runs, and their folders."""
    folder = tmp_path_factory.mktemp("new")
    python = make_environment(folder)
    projects = write_projects(python, folder)
    install_projects(python, projects, "--no-index", "--no-deps", "--no-build-isolation")
    return folder, python, projects


@pytest.mark.full
def test_each_kind_is_used_by_name_from_python(environment):
    folder, python, _ = environment
    assert run(python, "-I", "-W", "error", "-c", f"KINDS = {KINDS}\n{USE}", cwd=folder) == "torch.Size([50, 4])\n16 (2, 3, 32, 32)\n"


@pytest.mark.full
def test_each_kind_is_used_by_name_from_the_command_line(environment):
    folder, python, _ = environment
    program = f"from composable_energy_cli import main\nassert not any(map(main, {list(COMMANDS.values())}))"
    shown = run(python, "-I", "-c", program, cwd=folder)
    words = ["soft-energy", "SoftSampler", "soft_encoder:SoftEncoder", "denoising-small", "pictures"]
    assert all(word in shown for word in words), shown


@pytest.mark.full
def test_the_code_of_the_readmes_runs(environment):
    folder, python, projects = environment
    codes = []
    for kind in set(KINDS) - {"recipe"}:  # its code trains on a folder of the author's
        readme = (projects[kind] / "README.md").read_text(encoding="utf-8")
        codes += re.findall(r"^    import .*(?:\n(?:    .*)?)*", readme.partition("## Develop")[0], re.M)
    assert len(codes) == len(KINDS) - 1
    run(python, "-I", "-c", f"for code in {[*map(textwrap.dedent, codes)]}:\n    exec(code, {{}})", cwd=folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_has_its_name_everywhere(tmp_path, kind, capsys):
    assert main(["new-plugin", "big-blue-thing", "--kind", kind, "--directory", str(tmp_path / "here")]) == 0
    text = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "here").rglob("*") if path.is_file())
    assert not re.search(r"(?i:my.?plugin)|\b(A_KIND|KIND|GROUP|OBJECT|USAGE)\b", text)
    project = tomllib.loads((tmp_path / "here" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == "big-blue-thing" and [*map(list, project["entry-points"].values())] == [["big-blue-thing"]]
    assert "pip install -e" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("Soft Ring", "energy", "Perhaps soft-ring?"),
        ("1st", "energy", "must begin with a letter"),
        ("random", "energy", "a module of Python"),
        ("torch", "energy", "can be imported here"),
        ("faces", "energy", "offers the energy 'faces'"),
        ("hmc", "sampler", "offers the sampler 'hmc'"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(tmp_path, monkeypatch, capsys, name, kind, reason):
    monkeypatch.chdir(tmp_path)
    assert main(["new-plugin", name, "--kind", kind]) == 2 and reason in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_page_of_plugins_has_the_entry_point_of_every_kind():
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    groups = {row.group for row in ce.plugins() if row.distribution == "composable-energy"}
    assert groups <= set(re.findall(r'^\[project\.entry-points\."(.*)"\]\n[\w-]+ = "[\w.]+:\w+"  # ', page, re.M))


def test_a_folder_that_exists_or_cannot_be_written_is_left_alone(tmp_path, capsys):
    (tmp_path / "ring").mkdir()
    (tmp_path / "file").write_text("")
    for folder, message in (("ring", "exists; give another NAME, or --directory"), ("file/ring", "cannot be written: Not a directory")):
        assert main(["new-plugin", "soft-ring", "--directory", str(tmp_path / folder)]) == 2 and message in capsys.readouterr().err
    assert not list((tmp_path / "ring").iterdir())
