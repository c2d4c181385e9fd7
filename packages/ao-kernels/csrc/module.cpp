#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu_features.h"
#include "parallel.h"
#include "tensor.h"

namespace py = pybind11;

// One declaration and one call an op; each is defined in csrc/<op>.cpp.
void register_adam_step(py::module_& m);
void register_bandwidth(py::module_& m);
void register_count_steps(py::module_& m);
void register_int4_linear(py::module_& m);
void register_int8_dynamic_int4_linear(py::module_& m);
void register_int8_dynamic_intx_linear(py::module_& m);
void register_int8_dynamic_linear(py::module_& m);
void register_int8_embedding(py::module_& m);
void register_int8_linear(py::module_& m);
void register_int8_tokens(py::module_& m);
void register_intx_embedding(py::module_& m);
void register_intx_linear(py::module_& m);
void register_lion_step(py::module_& m);
void register_step_table(py::module_& m);

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of ao_kernels: raw addresses and sizes, no torch headers.";
  ao::bind_torch();
  m.def("isa", [] { return ao::isa_name(ao::current_isa()); }, "Instruction set in use.");
  m.def("available_isas", &ao::available_isas, "Instruction sets this machine can run, best last.");
  m.def("set_isa", &ao::set_isa, py::arg("name"));
  m.def("thread_backend", &ao::thread_backend, "'openmp' or 'pool'.");
  m.def("set_thread_backend", &ao::set_thread_backend, py::arg("name"));

  register_adam_step(m);
  register_bandwidth(m);
  register_count_steps(m);
  register_int4_linear(m);
  register_int8_dynamic_int4_linear(m);
  register_int8_dynamic_intx_linear(m);
  register_int8_dynamic_linear(m);
  register_int8_embedding(m);
  register_int8_linear(m);
  register_int8_tokens(m);
  register_intx_embedding(m);
  register_intx_linear(m);
  register_lion_step(m);
  register_step_table(m);
}
