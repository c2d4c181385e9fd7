"""Report: what a conversion did to a model, layer by layer."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Report", "Row"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One parameter.

    fqn           its full name
    status        "converted", "tied" (shares a converted one) or "skipped"
    what          the new format, or the reason
    shape         of the float weight
    bytes_before  of this parameter; a tied one counts nothing
    bytes_after   likewise
    """

    fqn: str
    status: str
    what: str
    shape: tuple[int, ...]
    bytes_before: int
    bytes_after: int


@dataclass(kw_only=True)
class Report:
    """All parameters that a rule reached. `print(report)` shows a summary, `report.table()` every
    row."""

    rows: list[Row] = field(default_factory=list)
    untouched_bytes: int = 0

    @property
    def converted(self) -> list[Row]:
        return [row for row in self.rows if row.status == "converted"]

    @property
    def tied(self) -> list[Row]:
        return [row for row in self.rows if row.status == "tied"]

    @property
    def skipped(self) -> list[Row]:
        return [row for row in self.rows if row.status == "skipped"]

    @property
    def bytes_before(self) -> int:
        """Bytes of the whole model before."""
        return sum(row.bytes_before for row in self.rows) + self.untouched_bytes

    @property
    def bytes_after(self) -> int:
        """Bytes of the whole model after."""
        return sum(row.bytes_after for row in self.rows) + self.untouched_bytes

    def __getitem__(self, fqn: str) -> Row:
        """The row of a parameter; a module's name stands for its weight."""
        for row in self.rows:
            if row.fqn in (fqn, f"{fqn}.weight"):
                return row
        raise KeyError(f"{fqn} is not in the report: no rule reached it")

    def __str__(self) -> str:
        kinds = Counter((row.status, row.what) for row in self.rows)
        lines = [f"{count:5} {status:9} {what}" for (status, what), count in kinds.items()]
        total = f"{_size(self.bytes_before)} -> {_size(self.bytes_after)}"
        return "\n".join(
            [*lines, f"model {total} ({_size(self.untouched_bytes)} that no rule reached)"]
        )

    def table(self) -> str:
        """One line a parameter."""
        cells = [
            (
                r.fqn,
                r.status,
                "x".join(map(str, r.shape)),
                f"{_size(r.bytes_before)} -> {_size(r.bytes_after)}",
                r.what,
            )
            for r in self.rows
        ]
        return _columns([("parameter", "status", "shape", "bytes", "format or reason"), *cells])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = [{**row.__dict__, "shape": list(row.shape)} for row in self.rows]
        return {"rows": rows, "bytes_before": self.bytes_before, "bytes_after": self.bytes_after}


def _size(count: int) -> str:
    amount, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.3g} {unit}"


def _columns(rows: Iterable[tuple[str, ...]]) -> str:
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )
