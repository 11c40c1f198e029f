"""Which samples of a cache are compared with which of its control, and why a cache cannot be one."""

from dataclasses import dataclass
from typing import Any

from ...data.cache.folder import Cache
from ...data.cache.metadata import Metadata, differences, model_name
from ...data.errors import InputError, OptionError
from ...data.prompts.controls import WHAT_CONTROLS_ARE

SAME_ROWS, OTHER_TASK = "same rows", "other task"
_SAME_MODEL = ("fingerprint", "tokenizer_fingerprint")
_MAY_DIFFER = (
    "--control",
    "--keep",
    "plan",
    "settings shard_size",
    "settings max_samples",
    "settings max_length",
    "settings seed",
)
_OF_PROMPTS = ("data", "templates", "span_names", "settings special_tokens")  # that other tasks have of their own


@dataclass(frozen=True)
class Pairing:
    """What a control cache is to another.

    Args:
        kind: `null` or `shuffle`; `same rows` where it has prompts of the same data file that are no control prompts, `other
            task` where it has those of another file.
        differing: what else differs and might be what a test finds, one phrase each.
    """

    kind: str
    differing: list[str]


def pairing_of(cache: Cache, other: Cache) -> Pairing:
    """How two caches are compared.

    Raises InputError where they are of two models, where the first holds control prompts, or the second those of other rows.
    """
    one, two = cache.metadata, other.metadata
    for each in (cache, other):
        if each.metadata["settings"].get("control") not in (None, *WHAT_CONTROLS_ARE):
            raise InputError(f"{each.path}: holds control prompts of a kind that this headscore does not know; upgrade it")
    if one["settings"].get("control"):
        raise InputError(f"{cache.path}: holds control prompts; give the ordinary cache, and this one as --against")
    _require_same_model(cache, other)
    control, same_data = two["settings"].get("control"), one["data"].get("sha256") == two["data"].get("sha256")
    if control and not same_data:
        raise OptionError(
            f"--against {other.path}: holds control prompts of other rows ({two['data'].get('path')}), not of those of "
            f"{cache.path} ({one['data'].get('path')}); capture the control of these with --control {control}"
        )
    kind = control or (SAME_ROWS if same_data else OTHER_TASK)
    passed = _MAY_DIFFER if same_data else (*_MAY_DIFFER, *_OF_PROMPTS)
    return Pairing(kind, [phrase for phrase in differences(one, two) if not phrase.startswith(passed)])


def _require_same_model(cache: Cache, other: Cache) -> None:
    one, two = cache.metadata, other.metadata
    shapes: list[Any] = [(each["dims"]["layers"], each["dims"]["heads"], each["layers"]) for each in (one, two)]
    if shapes[0] == shapes[1] and all(one["model"].get(key) == two["model"].get(key) for key in _SAME_MODEL):
        return
    raise OptionError(
        f"--against {other.path}: is not from the model of {cache.path} ({_named(two)}, {_named(one)}); a control is "
        "captured with the same model, adapter and --dtype"
    )


def _named(metadata: Metadata) -> str:
    return f"{model_name(metadata['model'])} [{metadata['model'].get('fingerprint')!s:.12}]"
