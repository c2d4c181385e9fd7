// Rows of an int8 table. See ao_kernels/ops/int8_embedding.py.
#include "isa.h"

#ifdef AO_ISA_NAMESPACE

#include "embedding_rows.h"

namespace ao::AO_ISA_NAMESPACE {

void int8_embedding(const EmbeddingArgs& a) { embedding_rows(a); }

}  // namespace ao::AO_ISA_NAMESPACE

#else

#include "embedding_call.h"

AO_BY_ISA(ao::EmbeddingKernel, int8_embedding)

static PyObject* int8_embedding(PyObject*, PyObject* const* args, Py_ssize_t n_args) {
  ao::EmbeddingCall call;
  int64_t group_size;
  if (n_args != 6 || !ao::read_int(args[4], &group_size) ||
      !call.read(args[0], args[1], args[2], args[3], Py_None, 0, group_size, 0, args[5]))
    return ao::not_implemented();
  return call.run(ao::int8_embedding_for(ao::current_isa()));
}

void register_int8_embedding(pybind11::module_& m) {
  ao::add_fastcall(m, "int8_embedding", int8_embedding,
                   "(n_threads, indices, codes, scale, group_size, dtype) -> rows or NotImplemented");
}

#endif
