"""Commands of plug-ins that break the rules do not break the command line."""

import pytest

from composable_energy_cli import main
from tests.third_party import install

COMMAND = """
    from composable_energy_cli import Command

    class Bad(Command):
        {summary}

        def add_arguments(self, parser):
            {arguments}

        def run(self, arguments):
            print("ran", vars(arguments).get("run"))
            return 0
"""
BROKEN = {
    "conflict": ("summary = 'conflicts'", "parser.add_argument('--traceback')"),
    "twice": ("summary = 'adds one twice'", "parser.add_argument('--x'); parser.add_argument('--x')"),
    "exits": ("summary = 'exits'", "raise SystemExit(0)"),
    "raises": ("summary = 'raises'", "1 / 0"),
    "prints": ("summary = 'prints'", "print('noise'); raise ValueError('bad')"),
}


@pytest.fixture
def command(site):
    def make(name, summary, arguments="parser.add_argument('run')", entry=None):
        module = f"third_party_{name}"
        source = COMMAND.format(summary=summary, arguments=arguments)
        install(site, f"acme-{name}", {"commands": {entry or name: f"{module}:Bad"}}, {module: source})
        return entry or name

    return make


def shown(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", BROKEN)
def test_a_command_whose_arguments_fail_breaks_no_other(command, capsys, kind):
    command(kind, *BROKEN[kind])
    listed = shown(["--help"], capsys)
    assert kind in listed and "draw from an expression" in listed and "noise" not in listed
    assert "--steps" in shown(["sample", "--help"], capsys)
    assert main([kind]) == 2
    out, err = capsys.readouterr()
    assert f"error: The command '{kind}' cannot be used: building it raised " in err and not out


def test_a_command_with_percent_signs_and_any_names_of_arguments_works(command, capsys):
    command("tight", "summary = '50 % (of all) tighter'")
    assert "50 % (of all) tighter" in shown(["--help"], capsys)
    assert main(["tight", "fast"]) == 0
    assert capsys.readouterr().out == "ran fast\n"


def test_a_command_with_the_name_of_an_own_one_has_that_of_its_distribution(command, capsys):
    command("thief", "summary = 'steals'", entry="sample")
    listed = shown(["--help"], capsys)
    assert "acme-thief:sample" in listed and "draw from an expression" in listed
    assert main(["acme-thief:sample", "fast"]) == 0
    assert capsys.readouterr().out == "ran fast\n"


def test_an_interrupt_while_a_plugin_is_imported_stops_the_command_and_names_the_plugin(site, capsys):
    install(site, "acme-slow", {"commands": {"slow": "third_party_slow:Slow"}}, {"third_party_slow": "raise KeyboardInterrupt"})
    assert main(["--help"]) == 130
    out, err = capsys.readouterr()
    assert "acme-slow" in err and "was being imported" in err and not out
    assert "--steps" in shown(["sample", "--help"], capsys)
