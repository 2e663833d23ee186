"""What a chapter's cells call: its parameters, its claims, what it records."""

from companion.notebook.checking import ClaimError, Claims
from companion.notebook.parameters import ParameterError, Settings, check_parameters, require
from companion.notebook.recording import record

__all__ = [
    "ClaimError",
    "Claims",
    "ParameterError",
    "Settings",
    "check_parameters",
    "record",
    "require",
]
