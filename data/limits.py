"""Says at once where the system's limit on memory is too low for the libraries of a command to start.

They end such a process in ways of their own, some without a word, before anything of ours could tell.
"""

from .errors import RunError

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

# What a command reserves on two cores before it does any work, with some room for the work: MiB of address space. A report's
# charts are drawn by V8, which reserves far more than it ever uses.
MIN_ADDRESS_SPACE = {
    "capture": 2048,
    "run": 2048,
    "validate": 2048,
    "score": 1024,
    "signals": 1024,
    "compare": 1024,
    "stability": 1024,
    "sweep": 1024,
    "control": 1024,
    "export": 1024,
    "import": 1024,
    "inspect": 256,
    "merge": 256,
    "report": 69_632,
}


def require_address_space(command: str | None) -> None:
    """Raises RunError where `ulimit -v` gives a command less address space than MIN_ADDRESS_SPACE, in MiB, says it needs."""
    needed = MIN_ADDRESS_SPACE.get(command or "", 0) << 20
    if resource is None:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise RunError(
            f"{command}: needs {needed >> 20} MiB of address space to start, and `ulimit -v` allows {limit >> 20}; raise it"
        )
