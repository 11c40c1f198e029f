"""Writes the shards of a cache in a thread of its own, while the next ones are computed."""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from ...data.cache.folder import SKIPPED_FILE, Cache, shard_path
from ...data.cache.metadata import SkippedRow
from ...data.cache.shard import Array, write_shard
from ...data.errors import RunError
from ...data.files.whole_file import remove
from ...data.prompts.tokens import Skipped
from ..job.resume import require_ours


class ShardWriter:
    """Writes shards one after the other. To be used as a context, which ends when the thread does.

    Args:
        cache: the shards' cache, whose metadata each of them gets.
        max_waiting: maximum of shards that wait to be written; beyond that `write` waits.
    """

    def __init__(self, cache: Cache, max_waiting: int):
        self._cache, self._max_waiting = cache, max_waiting
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def write(self, number: int, arrays: Mapping[str, Array], skipped: Sequence[Skipped], own: Mapping[str, Any]) -> None:
        """Have a shard written.

        Args:
            number: of the shard.
            arrays: its arrays by name, not to be changed any more.
            skipped: its rows that are left out.
            own: metadata of this shard alone.

        Raises what writing an earlier shard raised: RunError where the disk refuses, and InputError where the folder has become
        another capture's.
        """
        while self._waiting and (len(self._waiting) >= self._max_waiting or self._waiting[0].done()):
            self._finish_first()
        self._waiting.append(self._thread.submit(self._write, number, arrays, skipped, own))

    def finish(self) -> None:
        """Wait until all are written. Raises as `write`."""
        while self._waiting:
            self._finish_first()

    def _finish_first(self) -> None:
        try:
            self._waiting.popleft().result()
        except RunError as error:
            advice = "whole shards are kept: remedy that, then run the same command again"
            raise error.retold(f"{error.message}; {advice}") from error

    def _write(self, number: int, arrays: Mapping[str, Array], skipped: Sequence[Skipped], own: Mapping[str, Any]) -> None:
        require_ours(self._cache)
        remove(self._cache.path / SKIPPED_FILE)  # written again once the cache is complete
        entries = [SkippedRow(row=entry.row, reason=entry.reason) for entry in skipped]
        write_shard(shard_path(self._cache.path, number), number, arrays, {**self._cache.metadata, **own}, entries)
