import argparse
import sys
import webbrowser

from composable_energy_cli import Command
from composable_energy_cli.terms import add_range, value_range


class Ui(Command):
    """The command `composable-energy ui`: the playground in a browser."""

    summary = "type expressions and watch samples appear, in a browser"
    description = (
        "Starts a server on this computer and opens its page: an expression, sliders, samples while they form, and their numbers. The page "
        "loads nothing from other hosts. Ctrl-C ends it."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="the address to listen on (default: this computer only)")
        parser.add_argument("--port", type=int, default=7860, metavar="PORT", help="the port; 0 takes a free one (default: 7860)")
        parser.add_argument("--in", dest="family", metavar="FAMILY", help="the family of the names, or a folder with saved energies")
        parser.add_argument("--no-browser", action="store_true", help="only print the address")
        add_range(parser)

    def run(self, arguments: argparse.Namespace) -> int:
        from composable_energy.errors import OptionError
        from composable_energy_ui.server import Playground

        try:
            playground = Playground(arguments.host, arguments.port, arguments.family, value_range(arguments))
        except (OSError, OverflowError) as error:
            reason = str(error).rstrip(".")
            raise OptionError(f"--host {arguments.host} --port {arguments.port}: {reason}; `--port 0` takes a free port.") from error
        if not playground.local:
            print(
                f"Warning: --host {arguments.host} lets everybody who reaches this computer sample on it, without a password. Use it in a "
                "network that you trust.",
                file=sys.stderr,
            )
        print(f"The playground is at {playground.address} (Ctrl-C ends it)", flush=True)
        if not arguments.no_browser:
            webbrowser.open(playground.address)
        playground.run()
        return 0
