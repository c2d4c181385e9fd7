"""Tables of measured times: lookup, interpolation, files, and the choice of kernels by them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ao_kernels import OPS, force, tuned
from ao_kernels.registry import Op, op
from ao_kernels.tuned import Call, Row, Table

TOKENS = (1, 16, 32, 64, 128)
ROW = Row(
    op="tuned_linear",
    kind="group 128",
    N=4096,
    K=4096,
    tokens=TOKENS,
    us={
        "bf16": (13.0, 13.0, 13.2, 13.4, 16.0),
        "cuda": (5.0, 8.0, 12.0, 30.0, None),
        "triton": (9.0, 10.0, 11.9, 16.0, 32.0),
        "cuda:gone": (1.0, 1.0, 1.0, 1.0, 1.0),
    },
    run="today",
)
WIDE = Row("tuned_linear", "group 128", 14336, 4096, (1, 64), {"bf16": (30.0, 31.0)}, "today")
FINE = Row("tuned_linear", "group 32", 4096, 4096, (1,), {"bf16": (20.0,)}, "today")
BYTES = Row("tuned_linear", "row", 4096, 4096, (1,), {"bf16": (20.0,)}, "today")


def table(*rows: Row) -> Table:
    return Table("NVIDIA H200", rows or (ROW, WIDE, FINE, BYTES), {"today": {"torch": "2.13"}})


# --- lookup


def test_measured_times_come_back() -> None:
    for name, times in ROW.us.items():
        for M, us in zip(TOKENS, times, strict=True):
            if us is not None:
                assert ROW.time(name, M) == us


def test_between_measured_tokens_time_is_a_power_of_tokens() -> None:
    found = ROW.time("triton", 90)
    assert found is not None
    assert found == pytest.approx(16.0 * (90 / 64) ** 1.0)  # it doubles from 64 to 128
    between = ROW.time("bf16", 100)
    assert between is not None and 13.4 < between < 16.0


def test_beyond_measured_tokens() -> None:
    late = Row("o", "row", 8, 8, (1, 2, 4), {"a": (None, 3.0, 5.0)})
    assert late.time("a", 1) == 3.0
    assert ROW.time("cuda", 128) == 60.0  # twice the tokens of 64, the last that were measured
    assert ROW.time("nonsense", 1) is None


@pytest.mark.parametrize(
    ("kind", "N", "K", "expected"),
    [
        ("group 128", 4096, 4096, ROW),
        ("group 128", 5000, 3000, ROW),
        ("group 128", 10000, 4096, WIDE),  # 14336 / 10000 < 10000 / 4096
        ("group 128", 28672, 8192, WIDE),
        ("group 48", 4096, 4096, FINE),
        ("group 256", 4096, 4096, ROW),
        ("group 1024", 4096, 4096, None),
        ("row", 4096, 4096, BYTES),
        ("tensor", 4096, 4096, None),
        ("group 128", 1000, 4096, None),  # more than a factor of 4 away
        ("group 128", 4096, 17000, None),
    ],
)
def test_the_nearest_row(kind: str, N: int, K: int, expected: Row | None) -> None:
    for _ in range(2):  # the second answer is remembered
        found = TABLE.nearest("tuned_linear", Call(kind, 1, N, K))
        assert found is expected
    assert TABLE.nearest("another", Call(kind, 1, N, K)) is None


TABLE = table()


def test_the_fastest_of_those_that_are_there() -> None:
    call = Call("group 128", 16, 4096, 4096)
    assert TABLE.fastest("tuned_linear", call, ("cuda", "triton")) == "cuda"
    assert TABLE.fastest("tuned_linear", call._replace(M=64), ("cuda", "triton")) == "triton"
    assert TABLE.fastest("tuned_linear", call._replace(M=64), ("cuda",)) == "cuda"
    assert TABLE.fastest("tuned_linear", call, ("cuda:new",)) is None
    assert TABLE.fastest("tuned_linear", call._replace(N=8), ("cuda", "triton")) is None


def test_tokens_up_to_which_a_kernel_is_never_slower() -> None:
    names = ("cuda", "triton")
    assert TABLE.most_tokens("tuned_linear", "cuda", names, 16) == 32  # 12.0 is as fast as 11.9
    assert TABLE.most_tokens("tuned_linear", "cuda", names, 64) == float("inf")
    assert TABLE.most_tokens("tuned_linear", "triton", names, 1) == 1  # slower with 16 already
    assert TABLE.most_tokens("tuned_linear", "cuda", ("cuda",), 1) == float("inf")
    assert TABLE.most_tokens("tuned_linear", "cuda:new", names, 16) == 16
    assert TABLE.most_tokens("another", "cuda", names, 16) == float("inf")


def test_words_of_a_comparison() -> None:
    call = Call("group 128", 64, 4000, 4096)
    assert str(TABLE.compare("tuned_linear", call, "triton")) == (
        "measured 16.0 us against 13.4 us at 64 tokens of 4096 x 4096 on NVIDIA H200"
    )
    found = TABLE.compare("tuned_linear", call._replace(M=1), "cuda", against="triton")
    assert str(found).startswith("measured 5.0 us against 9.0 us at 1 token of")
    assert "interpolated" in str(TABLE.compare("tuned_linear", call._replace(M=65), "triton"))
    assert "interpolated" in str(TABLE.compare("tuned_linear", call._replace(M=128), "cuda"))
    assert TABLE.compare("tuned_linear", call, "nonsense") is None


# --- what calls are


def test_kinds_of_calls() -> None:
    x = torch.empty(2, 3, 256, dtype=torch.bfloat16)
    codes, byte = torch.empty(8, 128, dtype=torch.uint8), torch.empty(8, 256, dtype=torch.int8)

    def kind(name: str, *args: Any) -> str | None:
        each = OPS[name]
        call = tuned.call_of(each._parameters, each._bind(args, {}))
        assert call is None or call[1:] == (6, 8, 256)
        return None if call is None else call.kind

    rows, groups, whole = torch.empty(8, 1), torch.empty(8, 2), torch.empty(1, 1)
    assert kind("int4_linear", x, codes, groups, None, 128) == "group 128"
    assert kind("int4_linear", x, codes, rows, None, 256) == "row"
    assert kind("intx_linear", x, codes, groups, None, 3, 128) == "3 bits, group 128"
    assert kind("int8_linear", x, byte, rows, 256) == "row"
    assert kind("int8_dynamic_linear", x, byte, rows) == "row"
    assert kind("float8_linear", x, byte, rows, 1, 256) == "row"
    assert kind("float8_linear", x, byte, whole, 8, 256) == "tensor"
    assert kind("float8_linear", x, byte, groups, 1, 128) == "group 128"
    assert kind("float8_linear", x, byte, torch.empty(2, 2), 4, 128) == "block 4x128"
    assert kind("float8_dynamic_linear", x, byte, rows, 1, 256, "row") == "row"
    assert kind("float8_dynamic_linear", x, byte, whole, 8, 256, "tensor") == "tensor"
    assert kind("float8_dynamic_linear", x, byte, rows, 1, 256, "tensor") == (
        "row, tensor activations"
    )
    assert kind("int4_linear", x.float(), codes, groups, None, 128) is None
    assert kind("int4_linear", x[:0], codes, groups, None, 128) is None
    assert kind("quantize_rowwise", x, torch.int8) is None
    experts, ends = torch.empty(3, 8, 128), torch.tensor([2, 4, 6], dtype=torch.int32)
    assert kind("int4_grouped_linear", x, experts, torch.empty(3, 8, 2), None, 128, ends) is None


# --- files


def test_files_come_back(tmp_path: Path) -> None:
    failed = Row("a", "tensor", 1, 2, (1,), {"bf16": (None,)}, "today", {"triton, M=1": "no room"})
    path = tmp_path / "gpu.json"
    path.write_text(table(ROW, WIDE, failed).to_json())
    found = tuned.read(path)
    assert found.device == "NVIDIA H200" and found.runs == {"today": {"torch": "2.13"}}
    assert sorted(found.rows, key=str) == sorted((ROW, WIDE, failed), key=str)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("rows"), "'rows' is missing"),
        (lambda data: data.update(format=99), "format 99 is not 1"),
        (lambda data: data["rows"][0].pop("us"), "'us' is missing"),
        (lambda data: data["rows"][0].update(tokens=[2, 1, 3, 4, 5]), "tokens ascend"),
        (lambda data: data["rows"][0].update(N=0), "sizes are positive"),
        (lambda data: data["rows"][0]["us"].update(cuda=[1.0]), "cuda has 1 times, not 5"),
        (lambda data: data["rows"][0]["us"].update(cuda=[1, 2, 3, -4, 5]), "not positive"),
        (lambda data: data["rows"][0]["us"].update(cuda=[1, 2, "x", 4, 5]), "could not convert"),
        (lambda data: data.update(rows=[3]), "not a table"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "gpu.json"
    data = json.loads(table(ROW).to_json())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        tuned.read(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"gpu.json is not a table of measured kernels"):
        tuned.read(path)


def test_tables_of_this_package_are_well_formed() -> None:
    """And named after their device, with ops and kernels that there are."""
    for path in Path(tuned.__file__).parent.glob("*.json"):
        found = tuned.read(path)
        assert tuned.path_of(found.device) == path
        assert {row.op for row in found.rows} <= OPS.keys()
        assert {n for r in found.rows for n in r.run.split(tuned.AND)} == found.runs.keys()
        assert all(tuned.BF16 in row.us for row in found.rows)


def test_names_of_files() -> None:
    assert tuned.path_of("NVIDIA H200").name == "nvidia-h200.json"
    assert tuned.path_of("NVIDIA GeForce RTX 4090").name == "nvidia-geforce-rtx-4090.json"


def test_devices_without_a_table() -> None:
    assert tuned.table_of(torch.device("cpu")) is None
    assert tuned._table("no such GPU") is None


# --- choice


@op("(Tensor x, Tensor codes, Tensor scale, int group_size) -> Tensor", tensors=("x",))
def tuned_linear(x: Tensor, codes: Tensor, scale: Tensor, group_size: int) -> Tensor:
    raise AssertionError("a kernel takes every call")


del OPS["tuned_linear"]  # it is no op of the package


def _takes_few(x: Tensor, codes: Tensor, scale: Tensor, group_size: int) -> str | None:
    return "too many tokens" if len(x) > 100 else None


def _takes_all(x: Tensor, codes: Tensor, scale: Tensor, group_size: int) -> str | None:
    return None


def _direct(most: int, x: Tensor, codes: Tensor, scale: Tensor, group_size: int) -> Any:
    return NotImplemented


# The dtype of a result says which kernel ran.
@tuned_linear.kernel("cuda", device=("cuda", "meta"), supports=_takes_few, direct=_direct, few=16)
def _cuda(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(1, dtype=torch.float16)


@tuned_linear.kernel("triton", device=("cuda", "meta"), supports=_takes_all)
def _triton(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(1, dtype=torch.float64)


@tuned_linear.kernel("triton:new", device=("cuda", "meta"), supports=_takes_all)
def _new(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(1, dtype=torch.int64)


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> Iterator[Op]:
    """The op above, for meta tensors, which stand for those of a GPU with the table above."""
    before = force(None)
    monkeypatch.setitem(OPS, "tuned_linear", tuned_linear)
    monkeypatch.setattr(tuned, "table_of", lambda at: TABLE if at.type == "meta" else None)
    monkeypatch.setattr(tuned, "visible_tables", lambda: iter([TABLE]))
    tuned_linear._choose_direct()
    yield tuned_linear
    force(before)


def call(M: int, N: int = 4096, dtype: torch.dtype = torch.bfloat16) -> tuple[Any, ...]:
    x, codes = torch.empty(M, 4096, device="meta", dtype=dtype), torch.empty(N, 2048, device="meta")
    return x, codes, torch.empty(N, 32, device="meta"), 128


def test_choice_by_a_table(linear: Op) -> None:
    assert linear._most_tokens == 1  # asks first
    assert linear.choice(*call(1)).kernel == "cuda"
    assert linear._most_tokens == 32
    assert linear.choice(*call(32)).kernel == "cuda"  # its direct entry takes that
    assert linear.choice(*call(33)).kernel == "triton"
    assert linear(*call(33)).dtype == torch.float64
    assert linear.choice(*call(64)).kernel == "triton"
    assert linear.choice(*call(128)).kernel == "triton"  # "cuda" does not support it
    assert linear.choice(*call(64, N=64)).kernel == "cuda"  # far from all that was measured
    assert linear.choice(*call(64, dtype=torch.float32)).kernel == "cuda"
    before = force("cuda")
    assert linear._most_tokens == 0 and linear.choice(*call(64)).kernel == "cuda"
    assert linear(*call(64)).dtype == torch.float16
    force(before)
    assert linear(*call(64)).dtype == torch.float64


def test_the_direct_entry_is_told_what_it_may_take(linear: Op) -> None:
    told = []
    linear._on_cuda = (lambda most, *args: told.append(most) or NotImplemented,)
    linear(*call(64))
    linear(*call(64))
    assert told == [1, 32]


def test_what_a_table_chose_is_called_directly(linear: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    cuda = linear.kernels[0]

    def direct(most: int, *args: Any) -> Any:
        told.append(most)
        return NotImplemented if most else cuda.run(*args)

    asked: list[int] = []  # a kernel that looks for a plan of the call
    planned = dataclasses.replace(
        linear.kernels[1], direct=lambda most, *args: asked.append(most) or NotImplemented
    )
    kernels = [dataclasses.replace(cuda, direct=direct), planned, *linear.kernels[2:]]
    monkeypatch.setattr(linear, "kernels", kernels)
    linear._choose_direct()
    far = call(64, N=64)  # from all that was measured: goes to the first that supports it
    assert linear(*far).dtype == torch.float16 and 0 not in told
    told.clear()
    asked.clear()
    assert linear(*far).dtype == torch.float16 and told == [32, 0] and not asked
    assert linear(*call(64)).dtype == torch.float64  # another shape
    assert linear._chosen.direct(0, far[0], None, None) is NotImplemented  # for the check to word
    before = force("triton")
    assert linear(*far).dtype == torch.float64
    force(before)


def test_what_a_choice_says_about_bf16(linear: Op) -> None:
    choice = linear.choice(*call(64))
    assert choice.warning == (
        "bf16 would be faster: measured 16.0 us against 13.4 us at 64 tokens of 4096 x 4096 on "
        "NVIDIA H200"
    )
    assert linear.choice(*call(1)).warning == ""
    assert linear.choice(*call(64, N=64)).measured is None


def test_why_not_names_what_is_slower(linear: Op) -> None:
    reasons = linear.why_not(*call(64))
    assert reasons["cuda"] == (
        "triton is taken instead: measured 30.0 us against 16.0 us at 64 tokens of 4096 x 4096 on "
        "NVIDIA H200"
    )
    assert "13.4 us" in reasons["bf16"] and "bf16 would be faster" in reasons["bf16"]
    assert "triton" not in reasons and "triton:new" not in reasons
    assert "bf16" not in linear.why_not(*call(1))
    assert linear.why_not(*call(128))["cuda"] == "too many tokens"


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("wanted", ["triton", "cuda"])
def test_int4_linear_goes_where_a_table_says(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager, compiled and repeated calls, with more tokens than always go to one kernel."""
    from ao_kernels import cuda, triton
    from ao_kernels.ops import int4_linear

    if cuda.unavailable or triton.unavailable:
        pytest.skip(cuda.unavailable or triton.unavailable)
    names = ("cuda", "triton")
    times = {name: (5.0, 5.0 if name == wanted else 9.0) for name in names}
    row = Row("int4_linear", "group 128", 256, 512, (16, 40), {"bf16": (1.0, 1.0), **times}, "a")
    made_up = Table("a test", [row], {})
    monkeypatch.setattr(tuned, "table_of", lambda device: made_up)
    monkeypatch.setattr(tuned, "visible_tables", lambda: iter([made_up]))
    codes = torch.randint(0, 256, (256, 256), dtype=torch.uint8, device="cuda")
    scale = torch.rand(256, 4, device="cuda").bfloat16()
    before = force(None)  # the tables are asked anew
    try:
        for M in (16, 40):
            x = torch.randn(M, 512, device="cuda").bfloat16()
            args = (x, codes, scale, None, 128, None)
            choice = int4_linear.choice(*args)
            assert choice.kernel == ("cuda" if M == 16 else wanted)
            assert "bf16 would be faster: measured 5.0 us against 1.0 us" in choice.warning
            compiled = torch.compile(lambda *a: int4_linear(*a), fullgraph=True, backend="eager")
            found = [call(*args) for call in (int4_linear, int4_linear, compiled, compiled)]
            kernel = next(k for k in int4_linear.kernels if k.name == choice.kernel)
            expected = kernel.run(*args)
            assert all(torch.equal(y, expected) for y in found)
        assert int4_linear._most_tokens == (0 if wanted == "cuda" else 16)
    finally:
        monkeypatch.undo()
        force(before)
