"""Makes the options of commands from the fields of settings classes, and reads them from a configuration file."""

import dataclasses
import functools
import inspect as signatures
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from .data.errors import OptionError
from .data.options.settings import DEFAULT_WEIGHTS
from .data.voice import option_flag

PROGRAM = "headscore"
SHELLS = ("bash", "zsh", "fish")

# Under which heading the help shows an option.
GROUPS = {
    "Model": (
        "model",
        "revision",
        "adapter",
        "allow_other_model",
        "device",
        "dtype",
        "device_map",
        "trust_remote_code",
        "model_kwargs",
    ),
    "Data": ("data", "max_samples", "max_skipped", "seed", "keep", "answer"),
    "Prompt": ("template", "control", "chat", "system", "generation_prompt", "trailing_special", "max_length"),
    "Batches": ("batch_tokens", "batch_size", "share_prefixes"),
    "Cache": ("queries", "shard_size", "on_nan", "spot_checks"),
    "Signals": ("score_query_mode", "head_output", "task_span", "measure", "signal", "signals"),
    "Ranking": ("weight", "lambda_ent", "lambda_task", "fusion", "norm_mode", "within", "by", "top_k", "top_k_per_layer"),
    "Comparison": ("grid", "against", "compare_by", "effect"),
    "Format": ("format", "group", "sink_size", "recent_size"),
    "Heads taken out": ("k", "draws", "ablate", "single", "gate_gradient"),
    "Control": ("random_span", "fdr", "two_sided"),
    "Statistics": ("bootstrap", "strata", "cluster", "level", "fit_weights", "repeats"),
    "Work": ("workers", "dask", "fresh"),
    "Output": ("out", "report", "partial", "overwrite", "quiet"),
}
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
_OTHERS = "Other"


class GroupedCommand(TyperCommand):
    """A command whose help shows its options in groups, and whose options of names and values add to a configuration file's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command line, which wins over a configuration file also name by name."""
        rest = super().parse_args(ctx, args)
        given = {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
        _merge(ctx.params, ctx.default_map or {}, given)
        return rest

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options, group by group."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], **{group: [] for group in GROUPS}, _OTHERS: []}
        for parameter in self.get_params(ctx):
            is_argument = parameter.param_type_name == "argument"
            group = "Arguments" if is_argument else _GROUP_OF.get(parameter.name or "", _OTHERS)
            if record := parameter.get_help_record(ctx):
                groups[group].append(record)
        for group, records in groups.items():
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)


def summary(command: Callable[..., None]) -> str:
    """The first paragraph of a command's documentation, in one line."""
    return " ".join(signatures.cleandoc(command.__doc__ or "").split("\n\n")[0].split())


def _merge(values: dict[str, Any], configured: Mapping[str, Any], given: set[str]) -> None:
    """Let what is `given` on the command line win over what is `configured`, name by name.

    A weight also goes by an older option, such as `--lambda-ent`: the one that is given wins over the other.
    """
    here = {_name_of(text) for text in values.get("weight") or () if "weight" in given}
    for name in ("measure", "signal", "weight"):
        if name in given and isinstance(values[name], list):  # `signal` of some commands is one name
            own = {_name_of(text) for text in values[name]}
            values[name] = [*(text for text in configured.get(name, ()) if _name_of(text) not in own), *values[name]]
    for name, default in DEFAULT_WEIGHTS.items():
        older = f"lambda_{name}"
        if older in given and name not in here:
            values["weight"] = [text for text in values["weight"] if _name_of(text) != name]
        elif older in values and older not in given and name in here:
            values[older] = default


def _name_of(text: str) -> str:
    return text.partition("=")[0].strip()


def _config_callback(context: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a YAML file the command's defaults, so that the command line wins over them."""
    if path is None or context.resilient_parsing:
        return path
    from .data.options.configuration import read_configuration  # here, as YAML takes time to load

    names = {
        flag.lstrip("-").replace("-", "_"): parameter.name
        for parameter in context.command.params
        if parameter.name and parameter.name not in ("config", "debug", "help")
        for flag in (*parameter.opts, parameter.name)
    }
    given = {name: _as_given(value) for name, value in read_configuration(path, names).items()}
    context.default_map = {**(context.default_map or {}), **given}
    return path


def _as_given(value: Any) -> Any:
    """A value as the command line would give it."""
    if isinstance(value, Mapping):
        return [name if value is None else f"{name}={value}" for name, value in value.items()]
    return list(value) if isinstance(value, tuple) else value


DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
_COMMON: dict[str, Any] = {
    "config": Annotated[
        Path | None,
        typer.Option(
            help="YAML file with option values, such as the config.yaml of a run; the command line wins.",
            is_eager=True,
            callback=_config_callback,
        ),
    ],
    "debug": DEBUG,
}
PARTIAL = Annotated[bool, typer.Option("--partial", help="Score an unfinished capture by the shards it has so far.")]
OVERWRITE = Annotated[bool, typer.Option("--overwrite", help="Replace what another run left in --out.")]
QUIET = Annotated[bool, typer.Option("--quiet", help="Print the heads alone, without the lines on how far to trust them.")]


def with_options(*settings: type, configurable: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace a command's `**options` by the fields of settings classes; its own parameters stay as its signature says.

    It gets `--debug` besides, which `main` reads.

    Args:
        settings: classes of dataclass fields made by `option`.
        configurable: whether options may also stand in a configuration file, which `--config` names.
    """
    common = _COMMON if configurable else {"debug": DEBUG}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = {name: hint for each in settings for name, hint in get_type_hints(each).items()}
        fields = {field.name: field for each in settings for field in dataclasses.fields(each)}
        parameters = [
            *(p for p in signatures.signature(command).parameters.values() if p.kind is not signatures.Parameter.VAR_KEYWORD),
            *(_parameter(name, _annotation(field, hints[name]), _as_given(field.default)) for name, field in fields.items()),
            *(_parameter(name, annotation, None if name == "config" else False) for name, annotation in common.items()),
        ]

        @functools.wraps(command)
        def called(**given: Any) -> None:
            command(**{name: value for name, value in given.items() if name not in common})

        called.__signature__ = signatures.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return called

    return decorate


def _parameter(name: str, annotation: Any, default: Any) -> signatures.Parameter:
    return signatures.Parameter(name, signatures.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _annotation(field: "dataclasses.Field[Any]", hint: Any) -> Any:
    """The type of an option for the command line, which takes lists of texts, and leaves choices to the settings to check."""
    flag = option_flag(field.name)
    if field.default is True:
        flag += f"/--no-{flag.removeprefix('--')}"
    flags, help = (flag, *field.metadata["aliases"]), field.metadata["help"]
    origin = get_origin(hint)
    kinds = [] if origin in (tuple, Mapping) else [hint, *get_args(hint)]
    if choices := [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]:
        shown = typer.Option(*flags, help=help, metavar=f"<{'|'.join(choices)}>", autocompletion=_beginning(choices))
        return Annotated[str if field.default else str | None, shown]
    if not kinds:
        return Annotated[list[str], typer.Option(*flags, help=help, metavar="<name>" if origin is tuple else "<name=value>")]
    return Annotated[hint, typer.Option(*flags, help=help)]


def _beginning(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """What a shell offers for the beginning of a choice, with `-` or `_` as it begins."""
    known = list(choices)

    def beginning(incomplete: str) -> list[str]:
        spelled = [choice.replace("_", "-") for choice in known] if "-" in incomplete else known
        return [choice for choice in spelled if choice.startswith(incomplete)]

    return beginning


def completes(option: str, shell: str) -> bool:
    """Show or install the completion of the shell that is named; where none is, typer looks for the one it runs in."""
    if option not in ("--show-completion", "--install-completion"):
        return False
    from typer.completion import get_completion_script, install  # type: ignore[attr-defined]

    if shell not in SHELLS:
        raise OptionError(f"{option}: {shell!r} is not one of {', '.join(SHELLS)}")
    variable = f"_{PROGRAM.upper()}_COMPLETE"
    if option == "--install-completion":
        print(f"installed in {install(shell, PROGRAM, variable)[1]}")
    else:
        print(get_completion_script(prog_name=PROGRAM, complete_var=variable, shell=shell))
    return True
