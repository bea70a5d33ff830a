"""Environments with the wheel of this checkout, and projects of `new-plugin` in them. `python tests/new_projects.py PYTHON` is the
acceptance test as an author goes through it: in the environment of PYTHON, with the wheel, it writes a project of each kind, installs all
by `pip install -e ".[dev]"`, and runs their tests. `make wheel` calls it."""

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
KINDS = ("energy", "sampler", "encoder", "recipe", "world")


def run(*command: object, cwd: Path, **variables: str) -> str:
    """Runs a command without this checkout on its path, and returns its output."""
    own = ("PYTHON", "COMPOSABLE_ENERGY", "COV_", "PYTEST")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env={**inherited, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_environment(folder: Path) -> Path:
    """Returns the Python of a new environment with the wheel; it sees this environment's packages, and not this checkout."""
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder / "dist", cwd=ROOT)
    (wheel,) = (folder / "dist").glob("*.whl")
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check"),
        *("--target", site, wheel),
        cwd=folder,
    )
    # Behind what is installed here; an editable installation of the library there adds its paths by .pth files, which are not read again.
    (site / "borrowed.pth").write_text("\n".join({sysconfig.get_path(path) for path in ("purelib", "platlib")}))
    return python


def write_projects(python: Path, folder: Path) -> dict[str, Path]:
    """Writes a project of each kind into a folder, by the command line, and returns their folders."""
    words = [["new-plugin", f"soft-{kind}", "--kind", kind] for kind in KINDS]
    run(python, "-I", "-c", f"from composable_energy_cli import main\nassert not any(map(main, {words}))", cwd=folder)
    return {kind: folder / f"soft-{kind}" for kind in KINDS}


def install_projects(python: Path, projects: dict[str, Path], *options: object) -> None:
    """Installs projects by pip, in editable form."""
    chosen = [argument for project in projects.values() for argument in ("-e", f"{project}[dev]")]
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options, *chosen, cwd=next(iter(projects.values())))


def run_tests(python: Path, folder: Path) -> str:
    """Runs the tests of a project, with warnings as errors, and returns the last line of the output."""
    return run(python, "-I", "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", cwd=folder).strip().splitlines()[-1]


if __name__ == "__main__":
    interpreter = Path(sys.argv[1]).absolute()  # not resolved: the link of an environment says which one it is
    with tempfile.TemporaryDirectory() as name:
        written = write_projects(interpreter, Path(name))
        install_projects(interpreter, written, "--constraint", ROOT / "constraints.txt")
        with ThreadPoolExecutor(2) as pool:  # the other jobs of make have ended by then
            for kind, told in zip(written, pool.map(partial(run_tests, interpreter), written.values()), strict=True):
                print(f"new-plugin --kind {kind}: {told}")
        run(interpreter, "-m", "pip", "uninstall", "--quiet", "--yes", "pytest", *(f"soft-{kind}" for kind in KINDS), cwd=Path(name))
