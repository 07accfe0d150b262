"""The commands with their arguments, options and defaults, as text: a contract that changes on purpose only.

.venv/bin/python tests/architecture/cli_surface.py > tests/architecture/cli_surface.txt
"""

from __future__ import annotations

import typer.main

from persres.jobs.cli.app import app


def cli_surface() -> str:
    """One line for each command, and one for each of its parameters."""
    root = typer.main.get_command(app)
    lines = [f"persres-batch{_parameters(root)}"]
    for name, command in sorted(root.commands.items()):  # type: ignore[attr-defined]
        lines.append(f"{name}{_parameters(command)}")
    return "\n".join(lines) + "\n"


def _parameters(command) -> str:
    return "".join(f"\n  {_parameter(parameter)}" for parameter in command.params)


def _parameter(parameter) -> str:
    names = " ".join(parameter.opts) if parameter.param_type_name == "option" else parameter.name.upper()
    default = "required" if parameter.required else f"default {parameter.default}"
    return f"{names} ({default})"


if __name__ == "__main__":
    print(cli_surface(), end="")
