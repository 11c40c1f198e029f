"""Asks the hub once, before anything is loaded, and pins the commit that it names: all files then come from one state.

Asking first is also what makes a mistyped name fail at once: where there is no network, the loaders would try for a minute.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ResolvedRevision, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from ...data.errors import OptionError, typed_line

logger = logging.getLogger("headscore")


@dataclass(frozen=True)
class Pin:
    """A repository at one commit; `local_only`: the hub does not answer, so that only what is in its cache can be read."""

    option: str  # as the user gave it, such as "--model org/name", for messages
    repository: str
    revision: ResolvedRevision
    local_only: bool

    def options(self) -> dict[str, Any]:
        """What `from_pretrained` and the hub's functions are given."""
        return {"revision": self.revision, "local_files_only": self.local_only}

    def file(self, name: str) -> Path | None:
        """One file of the repository, None where it has no such file; InputError where it cannot be had."""
        try:
            return Path(hf_hub_download(self.repository, name, **self.options()))
        except EntryNotFoundError:
            return None
        except Exception as error:  # what the hub's client, its transport and the disk raise
            raise OptionError(f"{self.option}: {refusal(error) or typed_line(error)}") from error

    def folder(self, *patterns: str) -> Path:
        """A folder with the repository's files of these names; InputError where they cannot be had."""
        try:
            return Path(snapshot_download(self.repository, allow_patterns=list(patterns), **self.options()))
        except Exception as error:  # as above
            raise OptionError(f"{self.option}: {refusal(error) or typed_line(error)}") from error


def pin(option: str, repository: str, revision: str | None = None) -> Pin:
    """The commit that a branch, tag or commit (else the main branch) of a repository is at; what the cache knows if need be.

    Args:
        option: the option and what it was given, for messages.
        repository: hub id, `name` or `org/name`.
        revision: branch, tag or commit hash.

    Raises InputError where there is no such repository or revision, or where the hub does not answer and its cache has none.
    """
    api = HfApi()
    try:
        api.model_info(repository, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        return Pin(option, repository, api.resolve_revision(repository, revision=revision), local_only=False)
    except HFValidationError as error:
        raise OptionError(f"{option}: there is no such folder, and it is not a hub id") from error
    except RevisionNotFoundError as error:
        raise OptionError(f"{option}: the hub has no revision {revision!r} of it") from error
    except Exception as error:  # the transport's errors have no base class that huggingface_hub names
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise OptionError(f"{option}: there is no such folder, and {refusal(error) or typed_line(error)}") from error
        unreachable = error
    try:
        found = api.resolve_revision(repository, revision=revision, local_files_only=True)
    except RevisionResolutionError:
        raise OptionError(f"{option}: there is no such folder, and {_silence(unreachable)}") from unreachable
    if not isinstance(unreachable, OfflineModeIsEnabled):
        logger.warning("%s: the hub does not answer; what its cache holds is used", option)
    return Pin(option, repository, found, local_only=True)


def refusal(error: BaseException | None) -> str | None:
    """In plain words why the hub did not give a file, where `error` or what caused it tells; else None."""
    while error is not None:
        if isinstance(error, GatedRepoError):
            return "the hub gives it only to those whom its owner let in: ask on its page, then `hf auth login` or set HF_TOKEN"
        if isinstance(error, RepositoryNotFoundError):
            return "the hub has no such model (for a private one, `hf auth login` or set HF_TOKEN)"
        error = error.__cause__ or error.__context__
    return None


def _silence(error: BaseException) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "the hub's cache does not hold it (HF_HUB_OFFLINE is set)"
    return f"the hub ({constants.ENDPOINT}) does not answer: {typed_line(error)}"
