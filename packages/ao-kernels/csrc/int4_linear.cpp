// int4 weight-only linear: y = x @ ((codes - zero) * scale).T + bias. See ao_kernels/ops/int4_linear.py.
#include "isa.h"

#ifdef AO_ISA_NAMESPACE

#include "floats.h"
#include "linear.h"
#include "parallel.h"

namespace ao::AO_ISA_NAMESPACE {

void int4_linear(const LinearArgs& a) {
  parallel_for(a.N, 16, a.n_threads, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const uint8_t* codes = a.codes + n * a.row_bytes;
      for (int64_t m = 0; m < a.M; ++m) {
        float y = a.bias ? load_f32(a.bias, a.bias_dtype, n) : 0.0f;
        for (int64_t g = 0; g < a.G; ++g) {
          const int64_t at = n * a.scale_stride + g;
          const float zero = a.zero ? load_f32(a.zero, a.scale_dtype, at) : 8.0f;
          float sum = 0.0f;
          for (int64_t k = g * a.group_size; k < a.K && k < (g + 1) * a.group_size; ++k) {
            const float code = static_cast<float>(codes[k / 2] >> (k % 2 * 4) & 15);
            sum += load_f32(a.x, a.x_dtype, m * a.x_stride + k) * (code - zero);
          }
          y += sum * load_f32(a.scale, a.scale_dtype, at);
        }
        store_f32(a.y, a.x_dtype, m * a.N + n, y);
      }
    }
  });
}

}  // namespace ao::AO_ISA_NAMESPACE

#else

#include "linear_call.h"

AO_BY_ISA(ao::LinearKernel, int4_linear)

static PyObject* int4_linear(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::LinearCall call;
  int64_t group_size;
  if (n_args < 6 || n_args > 7 || !ao::read_int(args[5], &group_size) ||
      !call.read(args[0], args[1], args[2], args[3], args[4], 4, group_size,
                 ao::argument(args, n_args, 6)))
    return ao::not_implemented();
  return call.run(ao::int4_linear_for(ao::current_isa()));
}

void register_int4_linear(pybind11::module_& m) {
  ao::add_fastcall(m, "int4_linear", int4_linear,
                   "(n_threads, x, codes, scale, zero, group_size, bias=None) -> y or NotImplemented");
}

#endif
