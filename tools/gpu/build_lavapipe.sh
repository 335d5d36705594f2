#!/usr/bin/env bash
# Build llama-cpp-python with the Vulkan backend for Mesa's lavapipe: a GPU backend that runs on the
# processor, for the tests of everything that has to do with a GPU.
#
#   tools/gpu/build_lavapipe.sh OUT       makes OUT/llama_cpp_python-*.whl; 13 minutes on two free cores
#
# Needs glslc, spirv-headers, libvulkan-dev and mesa-vulkan-drivers (Debian's names) and Vulkan headers
# of 1.3.272 or later: VULKAN_INCLUDE names their folder where the system's are older. Use with
# GGML_VK_VISIBLE_DEVICES=0: llama.cpp takes no device of type CPU by itself.
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
python3 -m venv "$out/venv"
arguments=(-DGGML_VULKAN=ON)
[ "${VULKAN_INCLUDE:-}" ] && arguments+=("-DVulkan_INCLUDE_DIR=$VULKAN_INCLUDE")
if command -v ccache > /dev/null; then
  for language in C CXX; do arguments+=("-DCMAKE_${language}_COMPILER_LAUNCHER=ccache"); done
fi
export CMAKE_ARGS="${arguments[*]}" CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-$(nproc)}
# Without pip's cache: it may hold a wheel of the same name and version that has no GPU backend.
nice -n 19 "$out/venv/bin/pip" wheel --no-cache-dir --no-deps --no-binary llama-cpp-python --wheel-dir "$out" \
  llama-cpp-python==0.3.36
ls -l "$out"/*.whl
