"""Shared parts of the benchmarks: arguments, timing, and files of results.

Benchmarks are modules. Run them from the root of the checkout: `python -m benchmarks.NAME --help`.
"""

import argparse
import json
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
T = TypeVar("T")
M = TypeVar("M", bound=torch.nn.Module)
KEEP_MEMORY: Mapping[str, str] = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
"""Makes glibc's allocator keep freed memory for the next step of a training, which otherwise asks the system for it again."""
_NUMBERS = re.compile(r"\[\s+((?:(?:[\d.eE+-]+|true|false|null|NaN|-?Infinity)[,\s]*)+)\]")


def argument_parser(doc: str | None, path: Path | None = None) -> argparse.ArgumentParser:
    """Returns a parser whose description is a module's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if path is not None:
        parser.add_argument("--write", action="store_true", help=f"write {path.relative_to(ROOT)}")
    return parser


def read_options(doc: str | None, path: Path | None = None, arguments: Sequence[str] | None = None, **defaults: Any) -> argparse.Namespace:
    """Returns the options of the command line, and limits this process to one thread.

    Each default is an option of its type: False a switch, a sequence any number of values; one of texts takes some of them alone, unless it
    is empty.
    """
    parser = argument_parser(doc, path)
    for name, default in defaults.items():
        settings: dict[str, Any] = {"default": default, "help": f"(default {default})"}
        if isinstance(default, bool):
            settings = {"action": "store_true"}
        elif isinstance(default, Sequence) and not isinstance(default, str):
            first = default[0] if default else ""
            settings |= {"nargs": "+", "type": type(first)}
            settings |= {"choices": list(default), "metavar": name.upper()} if first and isinstance(first, str) else {}
        else:
            settings |= {"type": type(default)}
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    torch.set_num_threads(1)
    return parser.parse_args(arguments)


def chosen(known: Mapping[str, T], texts: Sequence[str]) -> dict[str, T]:
    """Returns the entries whose names have one of some texts, or all entries if there is no text.

    A text that no name has ends the program with the list of names, since a run that measures nothing looks like one that did.
    """
    for text in texts:
        if not any(text in name for name in known):
            argparse.ArgumentParser().error(f"no row has {text!r} in its name; there are: {'; '.join(known)}")
    return {name: entry for name, entry in known.items() if not texts or any(text in name for text in texts)}


def better_of_two(energy: Any, n: int, **options: Any) -> torch.Tensor:
    """Returns, of two draws for each of $n$ points, the one with the lower evidence; bound conditions have a row for each draw."""
    pairs = energy.latents.sample(2 * n, **options)
    best = energy.evidence(pairs).view(n, 2).argmin(1)
    points = pairs.unflatten(0, (n, 2))[range(n), best]
    return points if energy.decoder is None else energy.decoder(points).detach()


def environment(*packages: str, **settings: Any) -> dict[str, Any]:
    """Returns settings together with versions and machine, which the figures depend on too."""
    versions = {name: _version(name) for name in packages}
    about = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    return {**settings, **about, **versions, "machine": platform.machine()}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file with each list of numbers on one line; makes its folder if needed.

    A process that ends while it writes leaves the earlier file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", json.dumps(content, indent=1))
    part = path.with_suffix(".part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def replace_rows(path: Path, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[Mapping[str, Any]]:
    """Returns the rows of a file of results with some of them measured again."""
    new = {tuple(row[key] for key in keys) for row in rows}
    before = read_json(path)["rows"] if path.exists() else []
    return [*(row for row in before if tuple(row[key] for key in keys) not in new), *rows]


def run_benchmark(
    doc: str | None, path: Path, run: Callable[[Any], Iterable[Any]], arguments: Sequence[str] | None = None, **defaults: Any
) -> None:
    """Runs a benchmark from the command line, and writes what it yields each time, if asked, so that a stop loses little."""
    args = read_options(doc, path, arguments, **defaults)
    for content in run(args):
        if args.write:
            write_json(path, content)


def peak_memory() -> float:
    """Returns the largest resident memory of this process so far, in MB, on Linux.

    `getrusage` would count the memory of the process that started this one too.
    """
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def kept(path: Path, module: M, fit: Callable[[M], object]) -> M:
    """Returns a module with the weights of a file; fits the module and writes the file if there is none."""
    if not path.exists():
        fit(module)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(module.state_dict(), path)
    module.load_state_dict(torch.load(path))
    return module.eval()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
