"""The formats by name: one function in a file of its own each. A new one is a file, a line here, and its name in the settings.

`checkpoint` is not among them: it needs the model, so it is written by capture/ablating/zeroed.py.
"""

from collections.abc import Callable, Mapping

from ...data.options.export_settings import ExportFormat
from .card import card
from .chosen import Chosen
from .duo import duo
from .lists import csv_list, parquet_list
from .lofit import lofit
from .lora import peft
from .qrhead import qrhead
from .retrieval_head import retrieval_head
from .shira import shira
from .written import Content

FORMATS: Mapping[ExportFormat, Callable[[Chosen], Content]] = {
    "csv": csv_list,
    "parquet": parquet_list,
    "duo": duo,
    "retrieval_head": retrieval_head,
    "qrhead": qrhead,
    "lofit": lofit,
    "shira": shira,
    "peft": peft,
    "card": card,
}
