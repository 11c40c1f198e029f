"""The library as its users see it: signatures, help, types, names, and errors in terms of parameters."""

import ast
import copy
import dataclasses
import inspect
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_origin, get_type_hints

import pytest
import stub
from hypothesis import given
from hypothesis import strategies as st

import headscore
from headscore.data import voice
from headscore.data.errors import HeadscoreError, InputError, RunError, one_line
from headscore.data.options.evidence_settings import CompareSettings, ControlSettings, StabilitySettings, SweepSettings
from headscore.data.options.export_settings import ChoiceSettings, ExportSettings, ImportSettings
from headscore.data.options.settings import (
    BootstrapSettings,
    CaptureSettings,
    Expr,
    RunSettings,
    ScoreSettings,
    ValidateSettings,
    WorkSettings,
)

ROOT = Path(__file__).parent.parent
SETTINGS: dict[str, tuple[type, ...]] = {
    "capture": (CaptureSettings,),
    "score": (ScoreSettings, BootstrapSettings, WorkSettings),
    "report": (ScoreSettings, BootstrapSettings, WorkSettings),
    "run": (RunSettings,),
    "control": (ScoreSettings, ControlSettings),
    "signals": (ScoreSettings,),
    "compare": (ScoreSettings, CompareSettings),
    "stability": (ScoreSettings, StabilitySettings),
    "sweep": (ScoreSettings, WorkSettings, SweepSettings),
    "export": (ExportSettings,),
    "import_list": (ImportSettings,),
    "validate": (ValidateSettings,),
    "head_masks": (ChoiceSettings,),
}
OWN = {
    "capture": ["out", "overwrite", "progress"],
    "score": ["cache", "out", "overwrite", "partial", "report", "executor"],
    "report": ["cache", "out", "overwrite", "partial"],
    "run": ["out", "overwrite", "report", "progress"],
    "control": ["cache", "out", "overwrite", "partial"],
    "signals": ["cache"],
    "compare": ["rankings", "out", "overwrite", "partial"],
    "stability": ["cache", "out", "overwrite", "partial"],
    "sweep": ["cache", "out", "overwrite", "partial"],
    "export": ["results", "out", "overwrite"],
    "import_list": ["file", "out", "overwrite"],
    "validate": ["results", "out", "overwrite", "report", "progress"],
    "head_masks": ["results", "model", "groups"],
}

# ------------------------------------------------------------------------------------------------------------- signatures


@pytest.mark.parametrize("name", SETTINGS)
def test_signatures_have_the_fields_of_the_settings(name: str) -> None:
    parameters = inspect.signature(getattr(headscore, name)).parameters
    fields = [field for each in SETTINGS[name] for field in dataclasses.fields(each)]
    hints = {name: hint for each in SETTINGS[name] for name, hint in get_type_hints(each).items()}
    assert list(parameters) == [*OWN[name], *(field.name for field in fields)]
    for field in fields:
        parameter = parameters[field.name]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default == ({} if get_origin(hints[field.name]) is Mapping else field.default)
        if get_origin(hints[field.name]) is Literal or field.default in (True, False) or isinstance(field.default, int):
            assert parameter.annotation == hints[field.name], "what is no path, list or mapping is taken as it is kept"


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_signature_takes_the_settings_take(name: str) -> None:
    """Each default, and for the wider types what they are wider by."""
    parameters = inspect.signature(getattr(headscore, name)).parameters
    wider = {"model": Path("m"), "data": Path("d"), "task_span": ["a", "b"], "weight": {"out": 2}, "model_kwargs": {"a": 1}}
    for each in SETTINGS[name]:
        names = [field.name for field in dataclasses.fields(each)]
        assert each(**{name: parameters[name].default for name in names}) == each()
        own = {"format": "checkpoint"} if name == "export" else {}  # which alone has a model
        each(**{name: value for name, value in wider.items() if name in names}, **own)


@pytest.mark.parametrize("name", [*SETTINGS, "merge", "inspect", "scan_cache", "rows", "rank"])
def test_a_misspelt_option_is_refused_with_the_right_name(name: str) -> None:
    call = getattr(headscore, name)
    for parameter in inspect.signature(call).parameters:
        if len(parameter) > 5:
            misspelt = parameter[:2] + parameter[3:]
            with pytest.raises(
                TypeError, match=rf"^{name}\(\) got an unexpected option '{misspelt}'; did you mean '{parameter}'\?$"
            ):
                call(**{misspelt: 1})
    with pytest.raises(TypeError, match=r"unexpected option 'xyzzy'; it has "):
        call(xyzzy=1)


def test_other_spellings_are_known_too() -> None:
    with pytest.raises(TypeError, match="did you mean 'lambda_task'"):
        headscore.score("c", **{"lambda-task": 1})
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'cache'"):
        headscore.score()


@pytest.mark.parametrize("name", ["capture", "score"])
def test_what_stands_behind_a_callable_package_is_one_thing(name: str) -> None:
    package = getattr(headscore, name)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(package, protocol)) is package
    assert copy.deepcopy(package) is copy.copy(package) is package
    assert copy.deepcopy({"call": [package]})["call"][0] is package
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer).__name__)"
    done = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(package), capture_output=True, check=True)
    assert done.stdout.decode().strip() == f"headscore.{name}", "also where headscore was not imported yet"


@pytest.mark.parametrize("name", SETTINGS)
def test_help_shows_every_parameter(name: str) -> None:
    program = f"import headscore; help(headscore.{name})"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    call = getattr(headscore, name)
    assert call.__doc__.splitlines()[0] in shown
    for each in SETTINGS[name]:
        for field in dataclasses.fields(each):
            assert re.search(rf"^ +{field.name}: .+\n +\S", shown, re.MULTILINE), field.name
    assert "--" not in shown.split("Parameters:")[1].split("PACKAGE CONTENTS")[0], "help of the library names no options"


def test_dir_lists_the_public_names_and_all_of_them_are_there() -> None:
    assert set(headscore.__all__) == set(dir(headscore)) == {*headscore._PUBLIC, *headscore._CALLABLE_PACKAGES, "__version__"}
    errors = vars(sys.modules["headscore.data.errors"]).values()
    public = [e for e in errors if isinstance(e, type) and issubclass(e, HeadscoreError)]
    inner = {"UnfitRowError"}  # a row's reason
    assert {e.__name__ for e in public} - inner == {name for name in headscore.__all__ if name.endswith("Error")}


# ------------------------------------------------------------------------------------------------------------------ stubs


def test_the_stub_is_up_to_date() -> None:
    assert stub.STUB.read_text() == stub.text(), "make it anew: make stub"


def test_the_stub_names_no_type_any() -> None:
    """Neither in what it says itself, nor in the signatures of the calls and classes that it takes from elsewhere."""
    assert not re.search(r"\bAny\b", stub.STUB.read_text())
    for name in headscore.__all__:
        public = getattr(headscore, name)
        members = (
            [public]
            if not isinstance(public, type)
            else [
                member.fget if isinstance(member, property) else member for key, member in vars(public).items() if key[0] != "_"
            ]
        )
        for member in members:
            if name not in SETTINGS and inspect.isfunction(member):
                assert not re.search(r"\bAny\b", str(inspect.signature(member))), (name, member.__name__)
        for field in dataclasses.fields(public) if dataclasses.is_dataclass(public) else ():
            assert not re.search(r"\bAny\b", str(field.type)), (name, field.name)


def test_the_stub_says_what_the_signatures_say() -> None:
    """Parameter by parameter, read by Python's own parser."""
    defined = {node.name: node for node in ast.parse(stub.STUB.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert set(defined) == set(SETTINGS)
    for name, node in defined.items():
        real = inspect.signature(getattr(headscore, name)).parameters
        ordered = [*node.args.args, *node.args.kwonlyargs]
        assert [a.arg for a in ordered] == list(real) and not node.args.kwarg
        given_defaults = [None] * (len(node.args.args) - len(node.args.defaults)) + [
            *node.args.defaults,
            *node.args.kw_defaults,
        ]
        for argument, default in zip(ordered, given_defaults, strict=True):
            parameter = real[argument.arg]
            assert argument.annotation is not None
            known = {
                "Callable": Callable,
                "Executor": Executor,
                "Mapping": Mapping,
                "Sequence": Sequence,
                "Path": Path,
                "pl": SimpleNamespace(Expr=Expr),
                "Literal": Literal,
            }
            written = ast.unparse(argument.annotation)
            named = isinstance(parameter.annotation, str)  # a type of a package that is loaded later
            assert (written if named else eval(written, known)) == parameter.annotation, argument.arg
            has = default is not None
            assert has == (parameter.default is not inspect.Parameter.empty)
            assert not has or ast.literal_eval(default) == parameter.default, argument.arg


# ----------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ("--top-k: 13 is more; use another --out, or --overwrite", "top_k: 13 is more; use another out, or overwrite=True"),
        ("--out /a/b: is a cache", "out /a/b: is a cache"),
        ("a.h5: run again with --on-nan skip", "a.h5: run again with on_nan='skip'"),
        ("--no-generation-prompt: is for chats; give --chat too", "generation_prompt=False: is for chats; give chat=True too"),
        ("--chat: no template; leave out --chat", "chat: no template; leave out chat=True"),
        ("3 tokens are more than --max-length 2", "3 tokens are more than max_length=2"),
        ("give --template FILE for others", "give template=FILE for others"),
        ("lower --max-skipped 0.5, then", "lower max_skipped=0.5, then"),
        ("give --weight lift=2.5, or", "give weight={'lift': 2.5}, or"),
        ("--weight lift=2: appears twice", "weight lift=2: appears twice"),
        ("make one with `headscore capture --out X`", "make one with `headscore capture --out X`"),
        ("pip install --no-deps x --top", "pip install --no-deps x --top"),
        (
            "'--top-k' stands in d--out.json, x/--out and --out-of-date",
            "'--top-k' stands in d--out.json, x/--out and --out-of-date",
        ),
        ("this model's --dtype and that model's --seed", "this model's dtype and that model's seed"),
        ("--config c.yaml: --seed: expected int", "--config c.yaml: seed: expected int"),
    ],
)
def test_messages_are_told_in_the_readers_terms(options: str, parameters: str) -> None:
    for kind in (InputError, RunError):
        error = kind(options)
        assert str(error) == parameters and error.message == one_line(error) == options
        with voice.speaking_of_options():
            assert str(error) == options
        sent = pickle.loads(pickle.dumps(error))
        assert type(sent) is kind and (str(sent), sent.message) == (parameters, options), "also by way of another process"
    assert voice.as_parameters(parameters) == parameters, "what speaks of parameters stays as it is"


@given(text=st.text())
def test_a_message_without_options_stays_as_it_is(text: str) -> None:
    if "--" not in text:
        assert str(InputError(text)) == text


@given(name=st.sampled_from([f.name for f in dataclasses.fields(RunSettings)]), words=st.text("abc .", max_size=9))
def test_every_option_is_told_by_its_parameter(name: str, words: str) -> None:
    told = str(InputError(f"{voice.option_flag(name)}: {words}"))
    assert told == f"{name}: {words}"


def test_errors_that_are_made_of_errors_are_made_of_their_messages() -> None:
    """Else what a worker process or a file tells depends on who reads it first."""
    errors = {name for name, value in vars(headscore.data.errors).items() if isinstance(value, type)}  # type: ignore[attr-defined]
    for path in (path for room in ("data", "capture") for path in (ROOT / room).rglob("*.py")):
        for handler in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ExceptHandler)):
            caught = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} if handler.type else set()
            if caught & errors and path.name != "inspection.py":  # which tells its reader
                for node in ast.walk(ast.Module(handler.body, [])):
                    formatted = isinstance(node, ast.FormattedValue) and node.value
                    called = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "str" and node.args[0]
                    assert not any(isinstance(n, ast.Name) and n.id == handler.name for n in (formatted, called)), path


def test_library_and_command_line_tell_the_same_fault_each_in_its_terms(cache: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        with pytest.raises(InputError, match=r"^top_k: 13 is more than the 12 heads there are$"):
            headscore.score(cache, top_k=13, workers=workers)
    command = [sys.executable, "-m", "headscore", "score", str(cache), "--top-k", "13"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "headscore: error: --top-k: 13 is more than the 12 heads there are"
    traceback = subprocess.run([*command, "--debug"], capture_output=True, text=True).stderr
    assert traceback.splitlines()[-1] == "headscore.data.errors.OptionError: --top-k: 13 is more than the 12 heads there are"


@pytest.mark.parametrize("path", [None, "", 3, b"x", []])
def test_what_is_no_path_is_told_by_every_call(cache: Path, tmp_path: Path, path: Any) -> None:
    calls = [headscore.score, headscore.scan_cache, headscore.inspect, lambda c: headscore.rows(c, layer=0)]
    calls += [lambda c: headscore.report(c, tmp_path), lambda c: headscore.merge([c], tmp_path)]
    calls += [headscore.signals] if path is not None else []
    for call in calls:
        with pytest.raises(InputError, match=r"^cache: expected a path, got "):
            call(path)
    outs = [headscore.run, headscore.capture, lambda o: headscore.merge([cache], o), lambda o: headscore.report(cache, o)]
    outs += [lambda o: headscore.score(cache, o)] if path is not None else []
    for call in outs:
        with pytest.raises(InputError, match=r"^out: expected a path, got "):
            call(path)
