"""`new-plugin`: projects that pass their own tests in an environment with the wheel alone, and names that are refused."""

import re
import sys
import textwrap

import pytest

import composable_energy as ce
from composable_energy_cli import main
from tests.new_projects import KINDS, ROOT, install_projects, make_environment, run, run_tests, write_projects

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
print(ce.get("encoder", "soft-encoder", outputs=4)(points).shape, ce.get("kernel", "soft-kernel").available())
print(ce.get("recipe", "soft-recipe").settings["data"]["size"], ce.get("world", "soft-world").draw(2).images.shape)
"""
COMMANDS = {
    "energy": ("sample", "soft-energy", "--steps", "20", "--seed", "0", "-o", "points.npy"),
    "sampler": ("sample", "soft-energy", "--sampler", "soft-sampler", "--option", "scale=0.5", "--steps", "20", "-o", "points.npy"),
    "encoder": ("plugins", "--load", "--json"),
    "kernel": ("sample", "soft-energy", "--sampler", "langevin", "--steps", "20", "-o", "points.npy"),
    "recipe": ("recipes", "soft-recipe"),
    "world": ("render", "soft-world", "-n", "8", "--seed", "0", "-o", "pictures"),
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The Python of an environment with the wheel and a project of each kind, and their folders."""
    folder = tmp_path_factory.mktemp("new")
    python = make_environment(folder)
    projects = write_projects(python, folder)
    install_projects(python, projects, "--no-index", "--no-deps", "--no-build-isolation")
    return folder, python, projects


@pytest.mark.full
def test_new_projects_pass_their_own_tests(environment):
    folder, python, projects = environment
    others = [project for kind, project in projects.items() if kind != "kernel"]
    for some in (others, [projects["kernel"]]):  # a process takes its kernels once
        assert re.fullmatch(r"\d+ passed in .*", run_tests(python, folder, "--import-mode=importlib", "-W", "error", *some))


@pytest.mark.full
def test_each_kind_is_used_by_name_from_python(environment):
    folder, python, _ = environment
    shown = run(python, "-I", "-W", "error", "-c", f"KINDS = {KINDS}\n{USE}", cwd=folder)
    assert shown == "torch.Size([50, 4]) (True, '')\n16 (2, 3, 32, 32)\n"


@pytest.mark.full
@pytest.mark.parametrize("kernel", ["", "soft-kernel"])
def test_each_kind_is_used_by_name_from_the_command_line(environment, kernel):
    folder, python, _ = environment
    commands = {kind: words for kind, words in COMMANDS.items() if (kind == "kernel") == bool(kernel)}
    program = f"from composable_energy_cli import main\nassert not any(map(main, {list(commands.values())}))"
    shown = run(python, "-I", "-c", program, cwd=folder, COMPOSABLE_ENERGY_KERNEL=kernel)
    words = ["soft-energy"] if kernel else ["soft-energy", "SoftSampler", "soft_encoder:SoftEncoder", "denoising-small", "pictures"]
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
    assert main(["new-plugin", name, "--kind", kind]) == 2
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_page_of_plugins_has_the_entry_point_of_every_kind():
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    groups = {row.group for row in ce.plugins() if row.distribution == "composable-energy"}
    assert groups <= set(re.findall(r'^\[project\.entry-points\."(.*)"\]\n[\w-]+ = "[\w.]+:\w+"  # ', page, re.M))


def test_a_folder_that_exists_or_cannot_be_written_is_left_alone(tmp_path, capsys):
    (tmp_path / "ring").mkdir()
    (tmp_path / "file").write_text("")
    for folder, message in (("ring", "exists; give another NAME, or --directory"), ("file/ring", "cannot be written: Not a directory")):
        assert main(["new-plugin", "soft-ring", "--directory", str(tmp_path / folder)]) == 2
        assert message in capsys.readouterr().err
    assert not list((tmp_path / "ring").iterdir())
