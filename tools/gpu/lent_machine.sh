#!/usr/bin/env bash
# Build and measure on a machine with a GPU that is lent for minutes and reaches no network.
#
#   tools/gpu/lent_machine.sh CARRIED OUT [arguments of measure.py]
#
# CARRIED holds what was made beforehand: llama_cpp.tar.xz, the wheel of build_cuda.sh unpacked (llama_cpp/,
# include/), and wheels of the pure Python packages that the machine lacks. The machine has a compiler,
# CMake, ninja, pybind11, numpy, pytest and CUDA's libraries (also as PyPI's nvidia-* packages). OUT gets
# gpu.json, cases.json, what the tests said, and logs.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
carried=$(cd "$1" && pwd)
out=$(mkdir -p "$2" && cd "$2" && pwd)
shift 2
site=$(mktemp -d)/site
mkdir -p "$site"
python=${PYTHON:-python3}
begun=$SECONDS
say() { echo "[$((SECONDS - begun)) s] $*" | tee -a "$out/steps.log" >&2; }

"$python" - "$carried" "$site" <<'PYTHON' || exit 1
import pathlib, sys, tarfile, zipfile
carried, site = map(pathlib.Path, sys.argv[1:])
with tarfile.open(carried / "llama_cpp.tar.xz") as archive:
    archive.extractall(site)
for wheel in carried.glob("*.whl"):
    zipfile.ZipFile(wheel).extractall(site)
PYTHON
export PYTHONPATH=$site:$root PYTHONDONTWRITEBYTECODE=1
libraries=$("$python" - <<'PYTHON'
import pathlib, sys
places = [pathlib.Path(p) / "nvidia" for p in sys.path if p]
places += [pathlib.Path("/usr/local/cuda"), *pathlib.Path("/usr/local").glob("cuda-13*")]
places += [*pathlib.Path("/opt").glob("*/.venv/lib/python3*/site-packages/nvidia")]
places += [*pathlib.Path("/usr").glob("lib/x86_64-linux-gnu")]
found = []
for name in ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13"):
    for place in places:
        hits = sorted(place.rglob(name)) if place.is_dir() else []
        if hits:
            found.append(str(hits[0].parent))
            break
    else:
        print(f"{name} was found nowhere", file=sys.stderr)
print(":".join(dict.fromkeys(found)))
PYTHON
)
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
say "unpacked; CUDA's libraries in $libraries"
ldd "$site/llama_cpp/lib/libggml-cuda.so" 2>&1 | grep -E 'cuda|cublas|not found' | tee -a "$out/steps.log"
{
  cmake -S "$root" -B "$site/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DREMOE_PLUGIN=OFF \
    -DPython_EXECUTABLE="$(command -v "$python")" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
    -DCMAKE_BUILD_RPATH="$site/llama_cpp/lib" &&
    cmake --build "$site/build" --target _core -j "${JOBS:-$(nproc)}" &&
    cp "$site"/build/csrc/bindings/_core*.so "$root/remoe_edge/"
} > "$out/build.log" 2>&1 || { say "the core was not built"; tail -30 "$out/build.log"; exit 1; }
say "core built"
(cd / && nvidia-smi; "$python" -m remoe_edge.cli doctor) > "$out/doctor.txt" 2>&1
say "doctor: $(tr '\n' ' ' < "$out/doctor.txt" | cut -c1-300)"
"$python" "$root/tools/gpu/measure.py" -o "$out/gpu.json" "$@" 2>&1 | tee "$out/measure.log" | cut -c1-300
say "done"
