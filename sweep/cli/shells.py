"""Completion in bash, zsh and fish: the script that each sources, and the answers that it asks `sweep` for.

Invariants: a script hands over the command line up to the cursor in `COMP_LINE`, and `sweep` splits it, since bash also
splits words at `=` and `:`. The answers are one a line; what they mean for the shell is decided here.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import ClassVar

import click
from click.shell_completion import CompletionItem, ShellComplete, add_completion_class

from sweep.cli.groups import Argument, Verb

VARIABLE = "_SWEEP_COMPLETE"
# No space follows a completion that ends in one of these: more is to come.
OPEN_ENDS = ("=", ".", "/")

BASH = """\
%(complete_func)s() {
    local candidate
    COMPREPLY=()
    while IFS= read -r candidate; do
        COMPREPLY+=("$candidate")
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" BREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "${1/#\\~/$HOME}" 2>/dev/null)
}
complete -o nospace -o default -F %(complete_func)s %(prog_name)s
"""
ZSH = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local line
    local -a closed open
    for line in "${(@f)$(COMP_LINE="${(j: :)words[1,CURRENT]}" %(complete_var)s=zsh_complete ${~words[1]} 2>/dev/null)}"
    do
        case "${line%%%%$'\\t'*}" in
            '') ;;
            *[=./]) open+=("${${line//:/\\\\:}/$'\\t'/:}") ;;
            *) closed+=("${${line//:/\\\\:}/$'\\t'/:}") ;;
        esac
    done
    (( ${#closed} )) && _describe -V '' closed
    (( ${#open} )) && _describe -V '' open -S ''
    (( ${#closed} + ${#open} )) || { compset -P '*='; _files }
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""
FISH = """\
function %(complete_func)s
    set -lx COMP_LINE (commandline -cp)
    set -lx %(complete_var)s fish_complete
    set -l words (commandline -opc)
    set -l program (string replace -r '^~' $HOME -- $words[1])
    $program 2>/dev/null
end

complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


class _Complete(ShellComplete):
    """Completes the line that the shell hands over in `COMP_LINE`."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """The whole words after the program's name, and the word that is being written."""
        return split_line(os.environ.get("COMP_LINE", ""))

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """What may stand in the place of the word that is being written, as whole words."""
        items = super().get_completions(args, incomplete)
        option, equals, _ = incomplete.partition("=")
        if equals and option.startswith("-"):  # click completes the value alone
            items = [CompletionItem(f"{option}={item.value}", item.type, item.help) for item in items]
        return items

    def format_completion(self, item: CompletionItem) -> str:
        """A line with the word and, after a tabulator, what it means."""
        return f"{item.value}\t{item.help.splitlines()[0]}" if item.help else str(item.value)


class _Bash(_Complete):
    name: ClassVar[str] = "bash"
    source_template: ClassVar[str] = BASH

    def format_completion(self, item: CompletionItem) -> str:
        """What bash inserts after the last character at which it breaks words, with a space if the word is whole."""
        breaks = os.environ.get("BREAKS", "")
        incomplete = self.get_completion_args()[1]
        start = max((incomplete.rfind(character) for character in breaks), default=-1) + 1
        text = re.sub(r"([^\w@%+=:,./~-])", r"\\\1", item.value[start:])
        return text if item.value.endswith(OPEN_ENDS) else f"{text} "


class _Zsh(_Complete):
    name: ClassVar[str] = "zsh"
    source_template: ClassVar[str] = ZSH


class _Fish(_Complete):
    name: ClassVar[str] = "fish"
    source_template: ClassVar[str] = FISH


SHELLS = {kind.name: add_completion_class(kind) for kind in (_Bash, _Zsh, _Fish)}


def split_line(line: str) -> tuple[list[str], str]:
    """The whole words after the first one of a command line, and the word that is being written at its end."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    is_open = False
    try:
        words.extend(lexer)
    except ValueError:  # a quote that has not been closed
        words.append(lexer.token)
        is_open = True
    if not is_open and (line[-1:].isspace() or not line):
        words.append("")
    return words[1:-1], words[-1] if len(words) > 1 else ""


@click.command(
    cls=Verb,
    examples=(
        'eval "$(sweep completion bash)"                    # in ~/.bashrc',
        'eval "$(sweep completion zsh)"                     # in ~/.zshrc, after compinit',
        "sweep completion fish > ~/.config/fish/completions/sweep.fish",
    ),
)
@click.argument(
    "shell", cls=Argument, type=click.Choice(list(SHELLS)), metavar="SHELL", label="SHELL", text="bash, zsh or fish"
)
@click.pass_context
def completion(ctx: click.Context, shell: str) -> int:
    """Print the completion script for bash, zsh or fish.

    With it the Tab key completes verbs, options, sweeps, groups with their choices, and settings.
    """
    print(SHELLS[shell](ctx.find_root().command, {}, "sweep", VARIABLE).source(), end="")
    return 0
