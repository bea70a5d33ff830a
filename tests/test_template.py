"""The template, installed beside the wheel in a fresh environment, works by name and passes its own tests."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEMPLATE = ROOT / "plugins" / "_template"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The Python of a fresh environment with the wheel and the template; it sees this environment's packages, and not this checkout."""
    folder = tmp_path_factory.mktemp("template")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    shutil.copytree(TEMPLATE, folder / "copy", ignore=shutil.ignore_patterns(".*", "__pycache__"))
    for project in (ROOT, folder / "copy"):
        run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder / "dist"), cwd=project)
    wheels = [str(wheel) for wheel in (folder / "dist").glob("*.whl")]
    assert len(wheels) == 2
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--no-compile"),
        *("--disable-pip-version-check", "--target", str(site), *wheels),
    )
    # Behind what is installed here; an editable installation of the library there adds its paths by .pth files, which are not read again.
    (site / "borrowed.pth").write_text("\n".join({sysconfig.get_path(path) for path in ("purelib", "platlib")}))
    shutil.copytree(folder / "copy" / "tests", folder / "tests")
    return folder, python


def run(*command, cwd=None):
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COMPOSABLE_ENERGY", "COV_", "PYTEST"))
    }
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_template_works_by_name(environment):
    folder, python = environment
    program = """
import composable_energy as ce
assert "venv" in ce.__file__, ce.__file__
rows = {row.name: row for row in ce.plugins()}
assert rows["ring"].distribution == rows["random-walk"].distribution == "composable-energy-example", rows
assert rows["hmc"].distribution == "composable-energy"
assert all(row.state == "not-loaded" for row in rows.values()), rows
ring = ce.get_energy("ring", radius=2.0)
points = (ring & ~ce.get_energy("ring", radius=0.5)).sample((50, 2), sampler="random-walk", steps=50, seed=0)
again = (ring & ~ce.get_energy("ring", radius=0.5)).sample((50, 2), sampler="hmc", steps=10, seed=0)
(2 * ring).save("saved")
assert ce.load("saved")(points).equal(2 * ring(points))
print(points.shape, again.shape)
"""
    assert run(python, "-I", "-W", "error", "-c", program, cwd=folder).strip() == "torch.Size([50, 2]) torch.Size([50, 2])"


@pytest.mark.slow
def test_the_template_passes_its_own_tests(environment):
    folder, python = environment
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", folder, "-W", "error")
    assert "passed" in run(python, "-I", "-m", "pytest", *options, folder / "tests", cwd=folder)


def test_the_template_is_for_upload_and_has_no_name_of_ours():
    text = (TEMPLATE / "pyproject.toml").read_text(encoding="utf-8")
    assert "Do Not Upload" not in text
    assert "_template" not in (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[tool.ruff]")[0]
