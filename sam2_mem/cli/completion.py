"""Completion of commands and their flags, for bash and zsh: a script to be read by the shell.

source <(sam2-mem completion)                              # for this shell, bash or zsh; in ~/.zshrc for good
sam2-mem completion > ~/.local/share/bash-completion/completions/sam2-mem     # bash, for good
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from importlib import import_module

from sam2_mem.cli.arguments import command_parser
from sam2_mem.cli.command import COMMANDS

SCRIPT = """\
# Completion of sam2-mem, made by `sam2-mem completion`.
[ -z "${{ZSH_VERSION-}}" ] || {{ autoload -U +X compinit bashcompinit; (( $+functions[compdef] )) || compinit -i -D; bashcompinit; }}
_sam2_mem() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" words
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    if [ "$COMP_CWORD" -eq 1 ] || [ "${{word#-}}" != "$word" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$word"))
    else
        COMPREPLY=()  # files, by -o default
    fi
}}
complete -o default -F _sam2_mem sam2-mem
"""


def main(argv: Sequence[str] | None = None) -> int:
    command_parser(__doc__ or "").parse_args(argv)
    names = [name for name in COMMANDS if name != "completion"]
    cases = "\n".join(f'            {name}) words="{" ".join(flags(name))}" ;;' for name in names)
    print(SCRIPT.format(commands=" ".join(COMMANDS), cases=cases), end="")
    return 0


def flags(name: str) -> list[str]:
    """Flags and sub-commands of a command, out of its help."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        import_module(f"sam2_mem.cli.{COMMANDS[name][0]}").main(["--help"])
    usage = text.getvalue().partition("\n\n")[0]
    choices = re.search(r"\{([\w,-]+)\} \.\.\.", usage)
    found = re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", text.getvalue())
    return [*(choices[1].split(",") if choices else []), *sorted(set(found))]
