"""Click's command classes as `sweep` uses them: help with arguments and examples, and errors that name what is allowed.

Invariants: an option may stand anywhere, before the verb too. Each verb has a one-line description and examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import click
from click.shell_completion import CompletionItem

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted."
Records = list[tuple[str, str]]


class _Helpful(click.Command):
    """A command whose help option is described in the style of the others."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """The option `--help`."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = "show this help"
        return option


class Argument(click.Argument):
    """A positional word that the help explains.

    Args:
        label: what the list of arguments calls it.
        text: one line for that list.
    """

    def __init__(self, *names: Any, label: str = "", text: str = "", **more: Any) -> None:
        super().__init__(*names, **more)
        self.label = label
        self.text = text


class Verb(_Helpful):
    """A verb whose help lists its arguments, its options and examples.

    Args:
        examples: whole command lines.
    """

    def __init__(self, *words: Any, examples: Sequence[str] = (), **more: Any) -> None:
        super().__init__(*words, **{"context_settings": CONTEXT, **more})
        self.examples = tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments and the options that are not hidden."""
        params = self.get_params(ctx)
        arguments = [(p.label, p.text) for p in params if isinstance(p, Argument)]
        options = [record for p in params if isinstance(p, click.Option) and (record := p.get_help_record(ctx))]
        write_section(formatter, "Arguments", arguments)
        write_section(formatter, "Options", options)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(formatter, self.examples)
        super().format_epilog(ctx, formatter)


class VerbGroup(_Helpful, click.Group):
    """Verbs, listed in sections.

    Args:
        sections: title to names of verbs, which are the whole of them.
        default: the verb that is meant when the command line names none; empty: a verb is required.
        noun: what a verb of this group is called.
        examples: whole command lines.
    """

    def __init__(
        self,
        *words: Any,
        sections: Mapping[str, Sequence[str]],
        default: str = "",
        noun: str = "verb",
        examples: Sequence[str] = (),
        **more: Any,
    ) -> None:
        usual = {"context_settings": CONTEXT, "subcommand_metavar": "VERB ...", "no_args_is_help": False}
        super().__init__(*words, **{**usual, **more})
        self.sections = dict(sections)
        self.default = default
        self.noun = noun
        self.examples = tuple(examples)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the verb first; without a verb print the help and exit with code 2, unless there is a default."""
        if not args and not self.default and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, self._verb_first(ctx, args))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that is named first.

        Raises:
            UsageError: there is no such verb; the text lists those that exist.
        """
        if args and args[0] not in self.commands and not ctx.resilient_parsing:
            raise click.UsageError(unknown_word(self.noun, args[0], list(self.commands)), ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Verbs and options, and whatever may follow the default verb."""
        items = super().shell_complete(ctx, incomplete)
        for item in items:
            if verb := self.commands.get(item.value):
                item.help = verb.get_short_help_str(limit=200)
        if default := self.commands.get(self.default):
            items += default.shell_complete(ctx, incomplete)
            for argument in (param for param in default.params if isinstance(param, click.Argument)):
                items += [] if incomplete.startswith("-") else argument.shell_complete(ctx, incomplete)
        return list({item.value: item for item in items}.values())

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs by section, each with its one-line description."""
        for title, names in self.sections.items():
            lines = [(name, self.commands[name].get_short_help_str(limit=200)) for name in names]
            write_section(formatter, title, lines)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs before the options."""
        self.format_commands(ctx, formatter)
        options = [record for param in self.get_params(ctx) if (record := param.get_help_record(ctx))]
        write_section(formatter, "Options", options)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(formatter, self.examples)
        super().format_epilog(ctx, formatter)

    def _verb_first(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The same words with the verb in front of its options, or the default verb in front of all."""
        if (args and args[0] in _options_of(self, ctx)) or (ctx.resilient_parsing and not args):
            return args
        for index, word in enumerate(args):
            verb = self.commands.get(word)
            if verb and _first_positional(verb, ctx, args) == index:
                return [word, *args[:index], *args[index + 1 :]]
        if not self.default:
            return args
        first = _first_positional(self.commands[self.default], ctx, args)
        if first is not None and "=" not in args[first]:
            return args[first:]  # a verb that does not exist
        return [self.default, *args]


def _first_positional(command: click.Command, ctx: click.Context, args: Sequence[str]) -> int | None:
    """The index of the first word that is neither an option nor the value of one of this command's options.

    None if there is no such word, or an option before it is not one of this command.
    """
    options = _options_of(command, ctx)
    value_follows = False
    for index, word in enumerate(args):
        if not value_follows and not (word.startswith("-") and word != "-"):
            return index
        if value_follows:
            value_follows = False
            continue
        name, has_value, _ = word.partition("=")
        if name not in options:
            return None
        value_follows = not options[name].is_flag and not has_value
    return None


def _options_of(command: click.Command, ctx: click.Context) -> dict[str, click.Option]:
    """The options of a command by each of their names."""
    options = [param for param in command.get_params(ctx) if isinstance(param, click.Option)]
    return {name: option for option in options for name in (*option.opts, *option.secondary_opts)}


def unknown_word(kind: str, word: str, allowed: Sequence[str]) -> str:
    """A sentence about a verb or an option that does not exist, with the nearest one that does."""
    close = get_close_matches(word, allowed, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return f"there is no {kind} {word}{meant}; allowed: {', '.join(allowed)}"


def usage_text(error: click.UsageError) -> str:
    """What is wrong with a command line, in one sentence, and where to look."""
    text = error.format_message()
    ctx = error.ctx
    if ctx is None:
        return text
    if isinstance(error, click.NoSuchOption):
        options = _options_of(ctx.command, ctx)
        shown = [name for name, option in options.items() if not option.hidden and len(name) > 2]
        text = unknown_word("option", error.option_name, shown)
    return f"{text.rstrip('.')}; see `{ctx.command_path} --help`"


def write_section(formatter: click.HelpFormatter, title: str, records: Records) -> None:
    """Write a titled list of terms and what they mean, if there are any."""
    if records:
        with formatter.section(title):
            formatter.write_dl(records)


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write whole command lines, never wrapped."""
    if examples:
        with formatter.section("Examples"):
            for line in examples:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
