"""What the cells of a chapter call before and around the library's numerics."""

from companion.notebook.parameters import (
    ParameterError,
    Settings,
    check_parameters,
    require,
)

__all__ = ["ParameterError", "Settings", "check_parameters", "require"]
