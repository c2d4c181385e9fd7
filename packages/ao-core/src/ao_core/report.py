"""Report: what a conversion did to a model, layer by layer."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .tensor import QTensor

__all__ = ["KernelRow", "Report", "Row"]


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


@dataclass(frozen=True, kw_only=True)
class KernelRow:
    """A quantized layer with a number of tokens.

    fqn      the full name of the weight
    shape    of the float weight; of experts, each has `tokens`
    tokens   rows of activations in a call
    kernel   the kernel that computes it; "reference" is plain torch
    warning  where measurements say that bfloat16 would be faster: that, with the times; else ""
    """

    fqn: str
    shape: tuple[int, ...]
    tokens: int
    kernel: str
    warning: str


@dataclass(kw_only=True)
class Report:
    """All parameters that a rule reached. `print(report)` shows a summary, `report.table()` every
    row, `report.kernel_table(model)` which kernels the layers run."""

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

    def kernels(self, model: nn.Module, *, tokens: int | Sequence[int] = 1) -> list[KernelRow]:
        """Which kernel each quantized layer of `model` runs, where the model is now.

        tokens  rows of activations in a call, one number or several: 1 while text is generated one
                sequence at a time, all tokens of a prompt before that

        Embeddings, and formats without kernels, have no rows. ValueError for a model that the
        report is not about.
        """
        rows = []
        for row in [*self.converted, *self.tied]:
            module, weight = _layer(model, row.fqn)
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                continue
            own = row.fqn.rpartition(".")[2] == "weight"
            bias = module._parameters.get("bias") if own else None
            for n in (tokens,) if isinstance(tokens, int) else tokens:
                found = weight.kernel_for(n, bias)
                if found is not None:
                    kernel, warning = found
                    rows.append(
                        KernelRow(
                            fqn=row.fqn, shape=row.shape, tokens=n, kernel=kernel, warning=warning
                        )
                    )
        return rows

    def kernel_table(self, model: nn.Module, *, tokens: int | Sequence[int] = 1) -> str:
        """`kernels()`, with one line for layers of the same shape that run the same."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for row in self.kernels(model, tokens=tokens):
            shape = "x".join(map(str, row.shape))
            what = (shape, self[row.fqn].what, str(row.tokens), row.kernel, row.warning)
            groups.setdefault(what, []).append(row.fqn)
        cells = [(str(len(names)), names[0], *what) for what, names in groups.items()]
        return _columns([("layers", "first", "shape", "format", "tokens", "kernel", ""), *cells])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = [{**row.__dict__, "shape": list(row.shape)} for row in self.rows]
        return {"rows": rows, "bytes_before": self.bytes_before, "bytes_after": self.bytes_after}


def _layer(model: nn.Module, fqn: str) -> tuple[nn.Module, QTensor]:
    """A quantized weight and the module that it belongs to."""
    path, _, name = fqn.rpartition(".")
    try:
        module = model.get_submodule(path)
        weight = module._parameters[name]
    except (AttributeError, KeyError):
        weight = None
    if not isinstance(weight, QTensor):
        raise ValueError(
            f"{fqn} is no quantized weight of this model; give the model that the report is about"
        )
    return module, weight


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
