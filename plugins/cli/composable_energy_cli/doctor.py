import argparse
import platform
import sys
from dataclasses import replace
from importlib import metadata
from typing import Any

import composable_energy as ce
from composable_energy.options import printable, text_table
from composable_energy.registry import Command
from composable_energy_cli.terms import json_text
from composable_energy_cli.trial import LIBRARY, foreign_output, kernel_state, try_plugins

_PACKAGES = ("torch", "numpy", "einops", "entrypoints", "safetensors", "tqdm", "pillow", "triton", "mujoco", "huggingface-hub")
_LOADABLE = ("not-loaded", "ok")
_OPTIONAL = {"triton", "mujoco", "huggingface-hub"}


class Doctor(Command):
    """The command `composable-energy doctor`: checks of the installation, for bug reports and CI."""

    summary = "check versions, devices and plug-ins"
    description = "Shows versions and devices, loads each plug-in, and exits with 1 if anything fails."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        with foreign_output():
            rows, families, kernels, problems = _load_plugins()
        versions = {
            "composable-energy": ce.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        }
        problems += [f"{row.qualified if row.name else row.distribution}: {row.error}" for row in rows if row.state == "failed"]
        missing = [name for name, version in versions.items() if version is None and name not in _OPTIONAL]
        problems += [f"{name} is not installed; install composable-energy with its dependencies" for name in missing]
        if _version("composable-energy") is None:
            problems.append("composable-energy is not installed, so its own plug-ins are not found; run `pip install -e .` in the checkout")
        problems += _owned_twice({row.value.partition(":")[0].partition(".")[0] for row in rows if row.value} | {"composable_energy"})
        devices = _devices()
        if arguments.json:
            report = {"versions": versions, "platform": platform.platform(), "devices": devices, "kernels": kernels, "families": families}
            print(json_text({**report, "plugins": [vars(row) for row in rows], "problems": problems}))
            return 1 if problems else 0
        print(text_table(("package", "version"), [(name, version or "not installed") for name, version in versions.items()]))
        print(f"\nplatform  {platform.platform()}\npython    {sys.executable}\ndevices   {', '.join(devices)}")
        for name, state in kernels.items():
            print(printable(f"kernel    {name}: {state}"))
        print()
        print(text_table(("plug-in", "offered by", "state"), [(_kind(row), row.distribution or "this session", row.state) for row in rows]))
        for name, count in families.items():
            print(printable(f"family {name}: {count} members"))
        print("\n" + printable("\n".join(f"Problem: {problem}" for problem in problems) if problems else "All is well."))
        return 1 if problems else 0


def _kind(row: Any) -> str:
    return f"{row.group.rpartition('.')[2]} {row.name}" if row.group else "(metadata)"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    found = [f"cpu ({torch.get_num_threads()} threads)"]
    found += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return found + ["mps"] * torch.backends.mps.is_available()


def _load_plugins() -> tuple[list[Any], dict[str, int], dict[str, str], list[str]]:
    """Loads all plug-ins: the library's own here, others in processes of their own.

    Returns the records with their states, the number of members of each family, the state of each kernel here (an unavailable one is no
    problem), and the problems of families.
    """
    rows = ce.plugins(load=True, of=LIBRARY)
    tried = [i for i, row in enumerate(rows) if row.group and row.distribution not in (None, LIBRARY) and row.state in _LOADABLE]
    trials = dict(zip(tried, try_plugins([rows[i] for i in tried]), strict=True))
    own = [row for i, row in enumerate(rows) if i not in trials]
    entries = ce.installed([row for row in own if row.state == "ok"])
    families = {entry.name: len(entry.members) for entry in entries if entry.members}
    kernels = {
        row.qualified: kernel_state(ce.get("kernel", row.qualified))
        for row in own
        if row.group == "composable_energy.kernels" and row.state == "ok"
    }
    for i, trial in trials.items():
        rows[i] = replace(rows[i], state="failed" if trial.error else "ok", error=trial.error)
        families |= {rows[i].qualified: trial.members} if trial.members else {}
        kernels |= {rows[i].qualified: trial.kernel} if trial.kernel else {}
    return rows, families, kernels, [f"{entry.name}: {entry.error}" for entry in entries if entry.error]


def _owned_twice(packages: set[str]) -> list[str]:
    """Returns a problem for each package with two distributions: removing one deletes files of the other."""
    owners = metadata.packages_distributions()
    return [
        f"the package {package} is owned by {' and '.join(sorted(set(owners[package])))}: removing one deletes files of the other; "
        "remove both and install one again"
        for package in sorted(packages & owners.keys())
        if len(set(owners[package])) > 1
    ]
