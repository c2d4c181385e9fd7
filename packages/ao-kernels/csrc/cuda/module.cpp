#include <pybind11/pybind11.h>

#include "cuda/byte_product.h"
#include "cuda/device.h"
#include "cuda/experts.h"
#include "cuda/weight_only_large.h"
#include "cuda/weight_only_small.h"
#include "tensor.h"

namespace py = pybind11;

// One declaration and one call an op; each is defined in csrc/cuda/<op>.cpp.
void register_adam_step(py::module_& m);
void register_dequantize(py::module_& m);
void register_float8_dynamic_grouped_linear(py::module_& m);
void register_float8_dynamic_linear(py::module_& m);
void register_float8_grouped_linear(py::module_& m);
void register_float8_grouped_matmul(py::module_& m);
void register_float8_grouped_wgrad(py::module_& m);
void register_float8_linear(py::module_& m);
void register_float8_static_linear(py::module_& m);
void register_int4_grouped_linear(py::module_& m);
void register_int4_linear(py::module_& m);
void register_int8_dynamic_grouped_linear(py::module_& m);
void register_int8_dynamic_linear(py::module_& m);
void register_int8_grouped_linear(py::module_& m);
void register_int8_linear(py::module_& m);
void register_int8_static_linear(py::module_& m);
void register_intx_linear(py::module_& m);
void register_lion_step(py::module_& m);
void register_quantize_block_both(py::module_& m);
void register_quantize_grouped_both(py::module_& m);
void register_quantize_rowwise_both(py::module_& m);

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of ao_kernels: raw addresses and sizes, no torch headers.";
  ao::bind_torch();
  m.def("device_refusal", &ao::device_refusal, py::arg("device"),
        "Why no kernel runs on this CUDA device, or an empty string.");
  m.def("most_token_values", [](int device) { return ao::small::most_token_values(*ao::device(device)); },
        py::arg("device"), "The most values of x that a weight-only linear takes on this CUDA device.");

  m.def("many_tokens_refusal", [](int device) { return ao::large::device_refusal(*ao::device(device)); },
        py::arg("device"), "Why no weight-only linear of more than 16 tokens runs on this CUDA device, or an empty string.");

  m.def("byte_product_refusal", [](int device) { return ao::bytes::device_refusal(*ao::device(device)); },
        py::arg("device"), "Why no product of 8-bit codes runs on this CUDA device, or an empty string.");

  m.def("force_launches", [](int launches) { ao::bytes::forced_launches = launches; }, py::arg("launches"),
        "Launches of a linear with quantized activations: 1 (up to 16 tokens) or 2 in place of what the rule says; 0 for the rule.");

  register_adam_step(m);
  m.def("force_grouped_tile", [](int tokens) { ao::forced_tile = tokens; }, py::arg("tokens"),
        "Tokens of a tile of the grouped linears in place of those that the rules choose; 0 for those of the rules.");

  register_dequantize(m);
  register_float8_dynamic_grouped_linear(m);
  register_float8_dynamic_linear(m);
  register_float8_grouped_linear(m);
  register_float8_grouped_matmul(m);
  register_float8_grouped_wgrad(m);
  register_float8_linear(m);
  register_float8_static_linear(m);
  register_int4_grouped_linear(m);
  register_int4_linear(m);
  register_int8_dynamic_grouped_linear(m);
  register_int8_dynamic_linear(m);
  register_int8_grouped_linear(m);
  register_int8_linear(m);
  register_int8_static_linear(m);
  register_intx_linear(m);
  register_lion_step(m);
  register_quantize_block_both(m);
  register_quantize_grouped_both(m);
  register_quantize_rowwise_both(m);
}
