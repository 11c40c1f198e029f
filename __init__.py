"""headscore says which attention heads a task already drives, before a causal language model is changed for it.

import headscore

headscore.capture("cache", model="meta-llama/Llama-3.2-1B", data="commonsense_170k.json")  # once, with the model
scores = headscore.score("cache", lambda_task=2.0)                                          # as often as wanted, without
headscore.report("cache", "results")                                                        # a page to look at, offline
frame = headscore.scan_cache("cache")                                                       # (sample, layer, head) lines
"""

import importlib
from typing import Any

__version__ = "0.2.0"

# Loaded on first use, by full path: importing headscore costs nothing, and scoring never imports torch. Type checkers and
# editors are told of them by __init__.pyi.
_CHARTS = "headscore.score.report.charts"
_EVIDENCE_CHARTS = "headscore.score.report.evidence_charts"
_VALIDATION_CHARTS = "headscore.score.report.validation_charts"
_PUBLIC = {
    "rank": "headscore.score.ranking",
    "compare": "headscore.score.evidence.compare",
    "Comparison": "headscore.score.evidence.compare",
    "stability": "headscore.score.evidence.stability",
    "StabilityCurve": "headscore.score.evidence.stability",
    "sweep": "headscore.score.evidence.sweep",
    "Sweep": "headscore.score.evidence.sweep",
    "ablated": "headscore.capture.ablating.ablation",
    "mean_outputs": "headscore.capture.ablating.ablation",
    "rows": "headscore.score.scan",
    "scan_cache": "headscore.score.scan",
    "signals": "headscore.score.listing",
    "Scores": "headscore.score.scores",
    "run": "headscore.pipeline",
    "inspect": "headscore.data.cache.inspection",
    "merge": "headscore.data.cache.merging",
    "report": "headscore.pipeline",
    "validate": "headscore.pipeline",
    "export": "headscore.exporting",
    "head_masks": "headscore.exporting",
    "import_list": "headscore.score.export.importing",
    "Exported": "headscore.score.export.written",
    "Results": "headscore.score.results",
    "control": "headscore.score.evidence.control",
    "Control": "headscore.score.evidence.control",
    "Validation": "headscore.score.validated",
    "heatmap": _CHARTS,
    "signal_maps": _CHARTS,
    "entropy_and_task": _CHARTS,
    "layer_profiles": _CHARTS,
    "top_heads": _CHARTS,
    "stability_chart": _EVIDENCE_CHARTS,
    "compare_chart": _EVIDENCE_CHARTS,
    "control_map": _EVIDENCE_CHARTS,
    "sweep_map": _EVIDENCE_CHARTS,
    "validation_chart": _VALIDATION_CHARTS,
    "effect_map": _VALIDATION_CHARTS,
    "HeadscoreError": "headscore.data.errors",
    "InputError": "headscore.data.errors",
    "OptionError": "headscore.data.errors",
    "NewerFormatError": "headscore.data.errors",
    "DamagedShardError": "headscore.data.errors",
    "ForeignShardError": "headscore.data.errors",
    "RunError": "headscore.data.errors",
    "UnreadableFileError": "headscore.data.errors",
}
_CALLABLE_PACKAGES = ("capture", "score")  # their folders' names are the names of the calls

__all__ = [
    "Comparison",
    "Control",
    "DamagedShardError",
    "Exported",
    "ForeignShardError",
    "HeadscoreError",
    "InputError",
    "NewerFormatError",
    "OptionError",
    "Results",
    "RunError",
    "Scores",
    "StabilityCurve",
    "Sweep",
    "UnreadableFileError",
    "Validation",
    "__version__",
    "ablated",
    "capture",
    "compare",
    "compare_chart",
    "control",
    "control_map",
    "effect_map",
    "entropy_and_task",
    "export",
    "head_masks",
    "heatmap",
    "import_list",
    "inspect",
    "layer_profiles",
    "mean_outputs",
    "merge",
    "rank",
    "report",
    "rows",
    "run",
    "scan_cache",
    "score",
    "signal_maps",
    "signals",
    "stability",
    "stability_chart",
    "sweep",
    "sweep_map",
    "top_heads",
    "validate",
    "validation_chart",
]


def __getattr__(name: str) -> Any:
    if name in _CALLABLE_PACKAGES:
        return importlib.import_module(f"headscore.{name}")
    if name in _PUBLIC:
        if _PUBLIC[name] in (_CHARTS, _EVIDENCE_CHARTS, _VALIDATION_CHARTS):
            importlib.import_module("headscore.score.report.vega").require_packages(name)
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'headscore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
