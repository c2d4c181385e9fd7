"""QTensor, through the example format and the contract that every format passes."""

import pytest
import torch
from torch import Tensor

from ao_core.errors import UnsupportedOpError
from ao_core.tensor import QTensor, register_tensor, tensor_class
from ao_core.testing.example_format import ExampleTensor
from ao_core.testing.sharding_contract import check_formats, run_two_processes
from ao_core.testing.tensor_contract import QTensorContract


class TestExample(QTensorContract):
    min_sqnr_db = 40

    def make(self, w: Tensor) -> ExampleTensor:
        return ExampleTensor.from_float(w)


def test_sharding() -> None:
    run_two_processes(check_formats, {"example": ExampleTensor.from_float})


def test_padding_adds_zeros_at_the_ends() -> None:
    """What DTensor does before it sends shards of uneven size."""
    w = torch.randn(5, 16)
    q = ExampleTensor.from_float(w)
    longer = torch.nn.functional.pad(q, (0, 0, 0, 3))
    assert longer.shape == (8, 16) and torch.equal(longer[:5], q)
    assert torch.equal(longer.dequantize()[5:], torch.zeros(3, 16))
    for pad, value in (((0, 0, 1, 0), 0), ((0, 0, 0, 1), 1), ((0, -1), 0)):
        with pytest.raises(UnsupportedOpError, match="at the ends only"):
            torch.nn.functional.pad(q, pad, value=value)


def test_fields_are_derived_from_annotations() -> None:
    class Sub(ExampleTensor):
        extra: Tensor | None
        note: str

    assert Sub._data == ("codes", "scale", "extra") and Sub._optional == {"extra"}
    assert Sub._meta == ("transposed", "row", "note")
    base = ExampleTensor.from_float(torch.ones(4, 8))
    q = Sub(codes=base.codes, scale=base.scale, row=8, note="n", shape=base.shape, dtype=base.dtype)
    assert q.extra is None and set(q.tensors()) == {"codes", "scale"}
    assert q.rebuild(extra=torch.zeros(4, 1)).__tensor_flatten__()[0] == ["codes", "scale", "extra"]
    with pytest.raises(TypeError, match="fields are"):
        Sub(codes=base.codes, scale=base.scale, row=8, shape=base.shape, dtype=base.dtype)
    with pytest.raises(TypeError, match="fields are"):
        Sub(
            codes=base.codes,
            scale=base.scale,
            row=8,
            note="n",
            other=1,
            shape=base.shape,
            dtype=base.dtype,
        )


def test_each_class_has_its_own_table() -> None:
    class Sub(ExampleTensor):
        pass

    @Sub.implements(torch.ops.aten.neg.default)
    def _neg(q: Sub) -> Sub:
        return q.rebuild(scale=-q.scale)

    q = Sub(
        codes=torch.ones(2, 8, dtype=torch.int8),
        scale=torch.ones(2, 1),
        row=8,
        shape=torch.Size((2, 8)),
        dtype=torch.float32,
    )
    assert torch.equal((-q).dequantize(), -torch.ones(2, 8))
    with pytest.raises(NotImplementedError, match=r"aten\.neg.*ExampleTensor.*dequantize"):
        -ExampleTensor.from_float(torch.ones(2, 8))


def test_registered_names() -> None:
    assert tensor_class("ExampleTensor") is ExampleTensor
    with pytest.raises(KeyError, match=r"no tensor class named 'os\.system'"):
        tensor_class("os.system")
    with pytest.raises(TypeError, match="registered already"):
        register_tensor(type("ExampleTensor", (QTensor,), {}))


def test_pickle_refuses_other_classes() -> None:
    from ao_core.tensor import _rebuild

    with pytest.raises(TypeError, match="which is not one"):
        _rebuild(dict, (1,), torch.float32, {}, False)  # type: ignore[arg-type]


def test_data_of_a_float_parameter_is_refused() -> None:
    q = ExampleTensor.from_float(torch.ones(4, 8))
    with pytest.raises(TypeError, match="same format and shape"):
        q.data = torch.ones(4, 8)


def test_update_reaches_every_holder() -> None:
    """An engine that keeps the weight (RL rollouts) sees the new values without a reload."""
    q = ExampleTensor.from_float(torch.ones(4, 8))
    view = q[1:3]
    q.update_(torch.full((4, 8), 3.0))
    assert torch.equal(view.dequantize(), torch.full((2, 8), 3.0))
