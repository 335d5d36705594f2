#!/usr/bin/env bash
# Build llama-cpp-python with the CUDA backend, on a machine that needs no GPU, into a wheel.
#
#   tools/gpu/build_cuda.sh OUT [ARCHITECTURES]      architectures as CMake has them: 87 (Orin), 90 (H100)
#
# Needs nvcc (CUDA 13) and a compiler. cuBLAS, headers and libraries, comes from PyPI where the toolkit
# has none. Takes 36 minutes for one architecture on two busy cores. The wheel leaves cuBLAS out: the machine
# that runs it has CUDA's libraries, or `pip install nvidia-cublas`. It has some 180 MB, as llama-cpp-python
# packs the backend of 27 MB six times.
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
architectures=${2:-87}
cuda=${CUDA_HOME:-/usr/local/cuda}
version=0.3.36

python3 -m venv "$out/venv"
"$out/venv/bin/pip" install --quiet --upgrade pip
arguments=(
  -DGGML_CUDA=ON
  "-DCMAKE_CUDA_ARCHITECTURES=$architectures"
  "-DCMAKE_CUDA_COMPILER=$cuda/bin/nvcc"
  -DGGML_CUDA_NO_VMM=ON   # boards of 8 GB, and builds without the driver's library
  -DGGML_CUDA_FA=OFF      # most of the compile time; attention then runs as separate operations
  -DGGML_NATIVE=OFF
)
if [ ! -e "$cuda/include/cublas_v2.h" ]; then
  "$out/venv/bin/pip" install --quiet 'nvidia-cublas==13.0.*'
  cublas=$("$out/venv/bin/python" -c '
import importlib.metadata as m, pathlib
files = m.files("nvidia-cublas")
print(next(pathlib.Path(f.locate()).parent.parent for f in files if f.name == "cublas_v2.h"))')
  # CMake looks for the names without a version.
  mkdir -p "$out/lib"
  for name in cublas cublasLt; do
    ln -sf "$(ls "$cublas"/lib/lib$name.so.* | head -1)" "$out/lib/lib$name.so"
    arguments+=("-DCUDA_${name}_LIBRARY=$out/lib/lib$name.so")
  done
  arguments+=("-DCMAKE_CXX_FLAGS=-I$cublas/include" "-DCMAKE_CUDA_FLAGS=-I$cublas/include")
fi
if command -v ccache > /dev/null; then
  for language in C CXX CUDA; do arguments+=("-DCMAKE_${language}_COMPILER_LAUNCHER=ccache"); done
fi
export CMAKE_ARGS="${arguments[*]}" CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-$(nproc)}
if [ "${CONFIGURE_ONLY:-}" ]; then
  # What takes a minute: CMake finds compiler, toolkit and cuBLAS.
  "$out/venv/bin/pip" download --quiet --no-deps --no-binary :all: --dest "$out" \
    "llama-cpp-python==$version"
  tar -xf "$out"/llama_cpp_python-$version.tar.gz -C "$out"
  touch "$out/llama_cpp_python-$version/vendor/llama.cpp/ggml/ggml.pc.in"  # not in the archive
  exec cmake -S "$out/llama_cpp_python-$version/vendor/llama.cpp/ggml" -B "$out/configured" \
    -DGGML_BUILD_TESTS=OFF -DGGML_BUILD_EXAMPLES=OFF "${arguments[@]}"
fi
# Without pip's cache: it may hold a wheel of the same name and version that has no GPU backend.
nice -n 19 "$out/venv/bin/pip" wheel --no-cache-dir --no-deps --no-binary llama-cpp-python --wheel-dir "$out" \
  "llama-cpp-python==$version"
ls -l "$out"/*.whl
# Every symbol resolves: cuBLAS's where it lies, the driver's in the toolkit's stand-in for it.
"$out/venv/bin/pip" install --quiet "$out"/llama_cpp_python-*.whl
package=$("$out/venv/bin/python" -c 'import importlib.util as u; print(*u.find_spec("llama_cpp").submodule_search_locations)')
if [ ! -e "$package/lib/libggml-cuda.so" ]; then
  echo "$package holds no libggml-cuda.so: this wheel has no CUDA backend" >&2
  exit 1
fi
libraries=$(find "$out/venv/lib" -type d -path '*nvidia*' -name lib | paste -sd:)
export LD_LIBRARY_PATH=${libraries:+$libraries:}$cuda/lib64:$cuda/lib64/stubs
ldd -r "$package"/lib/libggml-cuda.so | grep -E 'not found|undefined' || echo "all symbols resolve"
