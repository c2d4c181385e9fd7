"""How refusals are worded: what was given, what is allowed, what to do.

Every class is also the built-in exception that a caller would expect, so `except ValueError` keeps
working.
"""

__all__ = ["CheckpointError", "ConfigError", "ConversionError", "UnsupportedOpError"]


class ConfigError(ValueError):
    """A config or its JSON is wrong: an unknown field, a value out of range, a type nobody
    registered."""


class ConversionError(ValueError):
    """A model could not be converted. The model is as it was before the call; `report` says which
    layers and why."""

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class CheckpointError(ValueError):
    """A checkpoint is damaged, inconsistent, or of a version that this release cannot read."""


class UnsupportedOpError(NotImplementedError):
    """An operation that a quantized tensor does not define. It is never replaced by a silent
    dequantize."""
