"""How long `import composable_energy` takes beside `import torch`, each in fresh processes, in turns.

    python -m benchmarks.import_time --rounds 15

The ratio is of the least processor seconds, which other programs on the machine change little. The bare import does not load torch, so the
fair figure is that of the import with every public name.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time

from benchmarks.harness import argument_parser

STATEMENTS = {
    "nothing": "pass",
    "import torch": "import torch",
    "import composable_energy": "import composable_energy",
    "import both": "import torch, composable_energy",
    "import, Energy": "from composable_energy import Energy",
    "import, plugins()": "import composable_energy; composable_energy.plugins()",
    "import, every name": "import composable_energy as ce; [getattr(ce, name) for name in ce.__all__]",
}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    waited: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    worked: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(args.rounds):
        for name, statement in STATEMENTS.items():
            start, before = time.perf_counter(), processor_seconds()
            subprocess.run([sys.executable, "-c", statement], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            waited[name].append(time.perf_counter() - start)
            worked[name].append(processor_seconds() - before)
    rows = {
        name: {
            "wall_median": statistics.median(waited[name]),
            "processor_median": statistics.median(worked[name]),
            "processor_least": min(worked[name]),
            "of_torch": min(worked[name]) / min(worked["import torch"]),
        }
        for name in STATEMENTS
    }
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'':24}" + "".join(f"{column:>18}" for column in rows["nothing"]))
    for name, row in rows.items():
        print(f"{name:24}" + "".join(f"{value:18.3f}" for value in row.values()))


def processor_seconds() -> float:
    """Returns the processor seconds of all finished child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
