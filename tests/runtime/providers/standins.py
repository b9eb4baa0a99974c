"""Stand-ins for NVIDIA's libraries, with which a GPU wheel of onnxruntime loads its providers without a driver.

Kernel registry, placement, options and refusals are then real; no kernel computes anything. Every symbol that the
two providers import exists (they are linked so that all must) under the version that they ask for, and answers 0;
those whose result is used have a body. TensorRT's serve for refusals only: a valid session of it ends the process.

The driver's answers come from the environment: STANDIN_DEVICES (1), STANDIN_DRIVER (13000), STANDIN_INIT (0).
"""

from __future__ import annotations

import collections
import re
import subprocess
from pathlib import Path

DRIVER, RUNTIME = "libcuda.so.1", "libcudart.so"
PROVIDERS = ("libonnxruntime_providers_cuda.so", "libonnxruntime_providers_tensorrt.so")
VERSIONED = re.compile(r"([^@]+)@+(lib\w+\.so\.\d+)")

ENVIRONMENT = """
#include <stdlib.h>
#include <string.h>
static int told(const char *name, int usual) { const char *text = getenv(name); return text ? atoi(text) : usual; }
"""
DRIVER_SOURCE = (
    ENVIRONMENT
    + """
int cuInit(unsigned flags) { return told("STANDIN_INIT", 0); }
int cuDriverGetVersion(int *version) { *version = told("STANDIN_DRIVER", 13000); return 0; }
int cuDeviceGetCount(int *count) { *count = told("STANDIN_DEVICES", 1); return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strcpy(name, "stand-in"); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 16ull << 30; return 0; }
int cuDeviceGetAttribute(int *value, int kind, int device) {
  *value = kind == 75 ? 8 : kind == 76 ? 6 : 1; return 0; }
"""
)
# Memory is the host's. The properties are cudaDeviceProp's fields by offset: memory, compute capability 8.6, and 40
# multiprocessors.
RUNTIME_SOURCE = (
    ENVIRONMENT
    + """
typedef void *P;
static int take(P *p, size_t n) { *p = calloc(1, n ? n : 1); return 0; }
int cudaMalloc(P *p, size_t n) { return take(p, n); }
int cudaMallocHost(P *p, size_t n) { return take(p, n); }
int cudaHostAlloc(P *p, size_t n, unsigned flags) { return take(p, n); }
int cudaMallocAsync(P *p, size_t n, P stream) { return take(p, n); }
int cudaMallocFromPoolAsync(P *p, size_t n, P pool, P stream) { return take(p, n); }
int cudaFree(P p) { free(p); return 0; }
int cudaFreeHost(P p) { free(p); return 0; }
int cudaFreeAsync(P p, P stream) { free(p); return 0; }
int cudaMemcpy(P to, const void *from, size_t n, int kind) { memcpy(to, from, n); return 0; }
int cudaMemcpyAsync(P to, const void *from, size_t n, int kind, P stream) { memcpy(to, from, n); return 0; }
int cudaMemset(P to, int value, size_t n) { memset(to, value, n); return 0; }
int cudaMemsetAsync(P to, int value, size_t n, P stream) { memset(to, value, n); return 0; }
int cudaGetDeviceCount(int *n) { *n = told("STANDIN_DEVICES", 1); return 0; }
int cudaGetDevice(int *n) { *n = 0; return 0; }
int cudaGetDeviceProperties(char *p, int device) {
  memset(p, 0, 700); strcpy(p, "stand-in"); *(size_t *)(p + 288) = 16ull << 30; *(size_t *)(p + 296) = 49152;
  *(int *)(p + 304) = 65536; *(int *)(p + 308) = 32; *(int *)(p + 320) = 1024; *(int *)(p + 360) = 8;
  *(int *)(p + 364) = 6; *(int *)(p + 384) = 40; return 0; }
int cudaDeviceGetAttribute(int *v, int kind, int device) {
  *v = kind == 75 ? 8 : kind == 76 ? 6 : kind == 16 ? 40 : kind == 10 ? 32 : kind == 97 ? 101376 : kind == 8 ? 49152
     : kind == 1 ? 1024 : 1; return 0; }
int cudaMemGetInfo(size_t *left, size_t *all) { *left = 15ull << 30; *all = 16ull << 30; return 0; }
int cudaDriverGetVersion(int *v) { *v = told("STANDIN_DRIVER", 13000); return 0; }
int cudaRuntimeGetVersion(int *v) { *v = 13000; return 0; }
int cudaStreamCreate(P *s) { return take(s, 8); }
int cudaStreamCreateWithFlags(P *s, unsigned flags) { return take(s, 8); }
int cudaEventCreate(P *s) { return take(s, 8); }
int cudaEventCreateWithFlags(P *s, unsigned flags) { return take(s, 8); }
const char *cudaGetErrorString(int e) { return "stand-in"; }
const char *cudaGetErrorName(int e) { return "stand-in"; }
int cudaPointerGetAttributes(int *p, const void *x) { memset(p, 0, 32); p[0] = 2; return 0; }
int cudaStreamIsCapturing(P s, int *v) { *v = 0; return 0; }
int cudaStreamEndCapture(P s, P *graph) { return take(graph, 8); }
int cudaGraphInstantiate(P *made, P graph, unsigned long flags) { return take(made, 8); }
int cudaMemPoolCreate(P *p, P properties) { return take(p, 8); }
static P handles[4];
P *__cudaRegisterFatBinary(P binary) { return handles; }
"""
)
# The provider calls methods of what these give: a table of functions that answer 0 and write empty lists.
TENSORRT_SOURCE = """
static long answer(void *self, int *n) { if ((unsigned long)n > 4096) *n = 0; return 0; }
static void *table[128], *object[16];
static void *make(void) {
  for (int i = 0; i < 128; i++) table[i] = (void *)answer;
  for (int i = 0; i < 16; i++) object[i] = i < 2 ? (void *)table : (void *)object;
  return object; }
void *createInferRefitter_INTERNAL(void) { return make(); }
void *createInferRuntime_INTERNAL(void) { return make(); }
void *createInferBuilder_INTERNAL(void) { return 0; }
int getInferLibVersion(void) { return 101400; }
void *getPluginRegistry(void) { return make(); }
"""
PARSER_SOURCE = """
long createNvOnnxParserRefitter_INTERNAL(void) { return 0; }
long createNvOnnxParser_INTERNAL(void) { return 0; }
"""
HANDLES = {
    "cublasCreate_v2", "cublasLtCreate", "cublasLtMatmulDescCreate", "cublasLtMatrixLayoutCreate",
    "cublasLtMatmulPreferenceCreate",
}  # fmt: skip


def build(capi: Path, out: Path) -> None:
    """Compile the libraries that the wheel whose onnxruntime/capi is given needs; gcc and readelf do the work."""
    out.mkdir(parents=True, exist_ok=True)
    needed, symbols = set(), collections.defaultdict(set)
    for provider in PROVIDERS:
        needed |= set(re.findall(r"NEEDED.*\[(lib(?:cu|nv)\w+\.so\.\d+)\]", _readelf("-d", capi / provider)))
        for fields in map(str.split, _readelf("--dyn-syms", capi / provider).splitlines()):
            if len(fields) < 8 or fields[6] != "UND":
                continue
            if found := VERSIONED.match(fields[7]):
                symbols[found[2]].add(found[1])
            elif fields[7].startswith("cu"):
                symbols[DRIVER].add(fields[7])
    for library in needed:
        source, versioned = "", False
        if library.startswith("libnvinfer"):
            source = TENSORRT_SOURCE
        elif library.startswith("libnvonnxparser"):
            source = PARSER_SOURCE
        elif library == DRIVER:
            source = DRIVER_SOURCE
        else:
            source, versioned = RUNTIME_SOURCE if library.startswith(RUNTIME) else "", bool(symbols[library])
        written = set(re.findall(r"\b(\w+)\(", source))
        source += "".join(_answering_zero(name) for name in sorted(symbols[library] - written))
        _compile(out / library, source or "int nothing;\n", versioned=versioned)


def _answering_zero(name: str) -> str:
    if name in HANDLES:
        return f"static char {name}_object[4096]; long {name}(void **h) {{ *h = {name}_object; return 0; }}\n"
    if name.startswith("cublasGetStatus"):
        return f'const char *{name}(void) {{ return "stand-in"; }}\n'
    return f"long {name}(void) {{ return 0; }}\n"


def _readelf(what: str, path: Path) -> str:
    return subprocess.run(["readelf", what, "-W", path], capture_output=True, text=True, check=True).stdout


def _compile(path: Path, source: str, *, versioned: bool) -> None:
    code = path.with_name(path.name + ".c")
    code.write_text(source)
    command = ["gcc", "-shared", "-fPIC", "-w", "-O1", f"-Wl,-soname,{path.name}", "-o", path, code]
    if versioned:
        script = path.with_name(path.name + ".map")
        script.write_text(f"{path.name} {{ global: *; }};\n")
        command.append(f"-Wl,--version-script={script}")
    subprocess.run(command, check=True)
