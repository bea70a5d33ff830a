"""Writes the tables of all pages: `python -m benchmarks.tables [--speed FILE]`.

`--speed` takes the file of `pytest --benchmark-json=FILE` and writes its condensed form to `results/speed.json` first.
"""

from pathlib import Path

from benchmarks.harness import RESULTS, argument_parser, read_json, write_json
from benchmarks.tables import speed, write_tables


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--speed", type=Path, help="the file of pytest-benchmark")
    args = parser.parse_args()
    if args.speed is not None:
        write_json(RESULTS / "speed.json", speed.condense(read_json(args.speed)))
    write_tables()


if __name__ == "__main__":
    main()
