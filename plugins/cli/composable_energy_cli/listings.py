"""The commands `energies`, `plugins` and `doctor`: the names for expressions, the installed plug-ins, and what is wrong with them."""

import argparse
import platform
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from importlib import metadata

import composable_energy as ce
from composable_energy.options import describe_error, printable, text_table
from composable_energy.registry import Command
from composable_energy_cli.foreign import LIBRARY, foreign_output
from composable_energy_cli.terms import json_text

_HEADER = ("energy", "state", "what it is")


class Energies(Command):
    """The command `composable-energy energies`: the names for expressions."""

    summary = "list the energies, trained or not"
    description = (
        "Lists the energies with one line each, those that can be sampled first, and the members of families. `untrained` energies are "
        "networks with random weights, to train or to load weights into; energies that need arguments are built in Python."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", metavar="NAME", help="the energy to list (default: all)")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        with foreign_output():
            found = ce.installed()
        entries = list(found) if arguments.name is None else [found[arguments.name]]
        if arguments.json:
            print(json_text([{**vars(entry), "state": entry.state} for entry in entries]))
            return 0
        if not entries:
            print("There are no energies with names; `composable-energy plugins` shows what was found.")
            return 0
        # trained ones first, then those that are ready, those that need arguments, untrained ones, and those that do not load
        entries.sort(key=lambda one: (one.error is not None, one.trained is False, bool(one.needs), one.trained is None))
        owners = ["" if one.distribution == LIBRARY else f"  ({one.distribution or 'this session'})" for one in entries]
        cells = [(one.name, one.state or "ready", (one.error or one.summary) + owner) for one, owner in zip(entries, owners, strict=True)]
        lines = text_table(_HEADER, cells).splitlines()
        margin = " " * lines[0].index(_HEADER[2])
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 140
        for entry, line in zip([None, *entries], lines, strict=True):
            print(line if len(line) <= width else f"{line[: width - 3].rstrip()}...")
            if entry is not None and entry.members:
                members = ", ".join(printable(f"{entry.name}/{member}") for member in entry.members)
                print(textwrap.fill(members, max(width, 80), initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False))
        return 0


class Plugins(Command):
    """The command `composable-energy plugins`: the installed plug-ins and their distributions."""

    summary = "list the plug-ins"
    description = "Lists the plug-ins that were found, without importing them."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--load", action="store_true", help="import each plug-in and show whether it loads")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        with foreign_output():
            rows = ce.plugins(load=arguments.load)
        if arguments.json:
            print(json_text([vars(row) for row in rows]))
            return 0
        owners = [f"{row.distribution or 'this session'} {row.version or ''}".strip() for row in rows]
        cells = [(row.group.rpartition(".")[2], row.name, row.value, owner, row.state) for row, owner in zip(rows, owners, strict=True)]
        print(text_table(("group", "name", "from", "offered by", "state"), cells))
        for row in rows:
            if row.error:
                print(printable(f"\n{row.qualified if row.name else row.distribution}: {row.error}"))
        return 0


_PACKAGES = ("torch", "numpy", "einops", "entrypoints", "safetensors", "tqdm", "pillow", "triton", "mujoco", "huggingface-hub")
_LIMIT = 60  # seconds for the plug-ins of a distribution
_OPTIONAL = {"triton", "mujoco", "huggingface-hub"}


class Doctor(Command):
    """The command `composable-energy doctor`: checks of the installation, for bug reports and CI."""

    summary = "check versions, devices and plug-ins"
    description = "Shows versions and devices, loads each plug-in, and exits with 1 if anything fails."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        with foreign_output():
            rows = _load_plugins()
            usable = [row for row in rows if row.state == "ok"]
            entries = ce.installed(usable)
            kernels = {row.qualified: _kernel_state(row.qualified) for row in usable if row.group == "composable_energy.kernels"}
        families = {entry.name: len(entry.members) for entry in entries if entry.members}
        versions = {"composable-energy": ce.__version__, "python": platform.python_version()}
        versions |= {name: _version(name) for name in _PACKAGES}
        problems = [f"{entry.name}: {entry.error}" for entry in entries if entry.error]
        problems += [f"{row.qualified if row.name else row.distribution}: {row.error}" for row in rows if row.state == "failed"]
        missing = [name for name, version in versions.items() if version is None and name not in _OPTIONAL]
        problems += [f"{name} is not installed; install composable-energy with its dependencies" for name in missing]
        if _version("composable-energy") is None:
            problems.append("composable-energy is not installed, so its own plug-ins are not found; run `pip install -e .` in the checkout")
        problems += _owned_twice({row.value.partition(":")[0].partition(".")[0] for row in rows if row.value} | {"composable_energy"})
        import torch

        cards = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
        devices = [f"cpu ({torch.get_num_threads()} threads)", *cards, *["mps"] * torch.backends.mps.is_available()]
        if arguments.json:
            report = {"versions": versions, "platform": platform.platform(), "devices": devices, "kernels": kernels, "families": families}
            print(json_text({**report, "plugins": [vars(row) for row in rows], "problems": problems}))
            return 1 if problems else 0
        print(text_table(("package", "version"), [(name, version or "not installed") for name, version in versions.items()]))
        print(f"\nplatform  {platform.platform()}\npython    {sys.executable}\ndevices   {', '.join(devices)}")
        for name, state in kernels.items():
            print(printable(f"kernel    {name}: {state}"))
        print()
        kinds = [f"{row.group.rpartition('.')[2]} {row.name}" if row.group else "(metadata)" for row in rows]
        cells = [(kind, row.distribution or "this session", row.state) for kind, row in zip(kinds, rows, strict=True)]
        print(text_table(("plug-in", "offered by", "state"), cells))
        for name, count in families.items():
            print(printable(f"family {name}: {count} members"))
        print("\n" + printable("\n".join(f"Problem: {problem}" for problem in problems) if problems else "All is well."))
        return 1 if problems else 0


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _load_plugins() -> list[ce.registry.PluginRecord]:
    """Returns the records of all plug-ins, loaded here. Those that end or block a process of their own count as failed."""
    broken = dict[str, str]()
    for owner in dict.fromkeys(row.distribution for row in ce.plugins() if row.state == "not-loaded" and row.distribution):
        code = f"import sys; sys.path[:] = {sys.path!r}; import composable_energy as ce; ce.plugins(load=True, of={owner!r})"
        try:
            if owner != LIBRARY:
                subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, timeout=_LIMIT, check=True)
            ce.plugins(load=True, of=owner)
        except subprocess.TimeoutExpired:
            broken[owner] = f"loading its plug-ins did not end within {_LIMIT} s"
        except subprocess.CalledProcessError as error:
            broken[owner] = f"loading its plug-ins ended the process with exit code {error.returncode}"
    return [replace(row, state="failed", error=broken[row.distribution]) if row.distribution in broken else row for row in ce.plugins()]


def _kernel_state(name: str) -> str:
    """Returns in words whether a kernel can run on this machine."""
    try:
        answer = ce.get("kernel", name).available()
        ready, reason = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
        return "ready" if ready else f"not available here{f': {reason}' if reason else ''}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # third-party code
        return describe_error(error)


def _owned_twice(packages: set[str]) -> list[str]:
    """Returns a problem for each package with two distributions: removing one deletes files of the other."""
    owners = metadata.packages_distributions()
    return [
        f"the package {package} is owned by {' and '.join(sorted(set(owners[package])))}: removing one deletes files of the other; "
        "remove both and install one again"
        for package in sorted(packages & owners.keys())
        if len(set(owners[package])) > 1
    ]
