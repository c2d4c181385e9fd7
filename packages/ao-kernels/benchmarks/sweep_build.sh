# Builds the sweep's library: bash packages/ao-kernels/benchmarks/sweep_build.sh OUT.so
set -e
cd "$(dirname "$0")"
O=$(mktemp -d)
N="nvcc -arch=sm_90a -std=c++20 -O3 -I../csrc -I. -Xcompiler -fPIC -c"
for f in sweep_*.cu; do $N -o $O/$f.o $f & done
for f in chain tensor_map; do $N -x cu -o $O/$f.o ../csrc/cuda/$f.cpp & done
for j in $(jobs -p); do wait $j; done
nvcc -shared -o $1 $O/*.o
