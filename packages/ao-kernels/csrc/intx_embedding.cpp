// Rows of a table of 1- to 8-bit codes. See ao_kernels/ops/intx_embedding.py.
#include "isa.h"

#ifdef AO_ISA_NAMESPACE

#include "embedding_rows.h"

namespace ao::AO_ISA_NAMESPACE {

void intx_embedding(const EmbeddingArgs& a) { embedding_rows(a); }

}  // namespace ao::AO_ISA_NAMESPACE

#else

#include "embedding_call.h"

AO_BY_ISA(ao::EmbeddingKernel, intx_embedding)

static PyObject* intx_embedding(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::EmbeddingCall call;
  int64_t bits, group_size, length;
  if (n_args != 9 || !ao::read_int(args[5], &bits) || bits < 1 || bits > 8 ||
      !ao::read_int(args[6], &group_size) || !ao::read_int(args[7], &length) ||
      !call.read(args[0], args[1], args[2], args[3], args[4], bits, group_size, length, args[8]))
    return ao::not_implemented();
  return call.run(ao::intx_embedding_for(ao::current_isa()));
}

void register_intx_embedding(pybind11::module_& m) {
  ao::add_fastcall(
      m, "intx_embedding", intx_embedding,
      "(n_threads, indices, codes, scale, zero, bits, group_size, length, dtype) -> rows or NotImplemented");
}

#endif
