// cuBLAS in host memory, for tests: libcublas.so.13. Products of f32 or bf16, summed in f32; matrices are column-major.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

// As in cublas_api.h and library_types.h.
enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Type { F32 = 0, BF16 = 14 };
enum Compute { COMPUTE_32F = 68 };

struct Handle {
    size_t workspace_bytes = 0;
    unsigned math_mode = 0;
};

EXPORT int cublasCreate_v2(void** handle) {
    *handle = new Handle;
    return SUCCESS;
}
EXPORT int cublasDestroy_v2(void* handle) {
    delete static_cast<Handle*>(handle);
    return SUCCESS;
}
EXPORT int cublasSetStream_v2(void* handle, void*) { return handle == nullptr ? NOT_INITIALIZED : SUCCESS; }
EXPORT int cublasSetWorkspace_v2(void* handle, void* workspace, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(workspace) % 16 != 0) return INVALID_VALUE;
    static_cast<Handle*>(handle)->workspace_bytes = bytes;
    return SUCCESS;
}
EXPORT int cublasSetMathMode(void* handle, unsigned mode) {
    static_cast<Handle*>(handle)->math_mode = mode;
    return SUCCESS;
}
EXPORT int cublasGetVersion_v2(void*, int* version) {
    *version = 130000;
    return SUCCESS;
}
EXPORT const char* cublasGetStatusString(int status) { return status == INVALID_VALUE ? "an invalid value" : "not supported"; }

static float value(const void* matrix, int type, size_t at) {
    if (type == F32) return static_cast<const float*>(matrix)[at];
    uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(matrix)[at]) << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

// A matrix as rows x columns, column after column, transposed where asked for.
static std::vector<float> unpacked(const void* matrix, int type, bool transposed, size_t rows, size_t columns, size_t stride) {
    std::vector<float> out(rows * columns);
    for (size_t j = 0; j < columns; j++)
        for (size_t i = 0; i < rows; i++) out[j * rows + i] = value(matrix, type, transposed ? i * stride + j : j * stride + i);
    return out;
}

EXPORT int cublasGemmEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a, int type_a, int lda,
                        const void* b, int type_b, int ldb, const void* beta, void* c, int type_c, int ldc, int compute, int) {
    if (handle == nullptr) return NOT_INITIALIZED;
    // The products of obsdiff: a workspace is set, and neither TF32 nor reduced sums are allowed.
    auto* of = static_cast<Handle*>(handle);
    bool settled = of->workspace_bytes > 0 && of->math_mode == 16;
    bool sizes = m > 0 && n > 0 && k > 0 && lda >= (transpose_a ? k : m) && ldb >= (transpose_b ? n : k) && ldc >= m;
    if (!settled || !sizes) return INVALID_VALUE;
    if (type_c != F32 || compute != COMPUTE_32F || type_a != type_b || (type_a != F32 && type_a != BF16)) return NOT_SUPPORTED;
    float times, keep;
    memcpy(&times, alpha, sizeof times);
    memcpy(&keep, beta, sizeof keep);
    auto left = unpacked(a, type_a, transpose_a != 0, m, k, lda), right = unpacked(b, type_b, transpose_b != 0, k, n, ldb);
    std::vector<float> sums(m);
    for (int j = 0; j < n; j++) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int p = 0; p < k; p++) {
            float x = right[static_cast<size_t>(j) * k + p];
            const float* column = &left[static_cast<size_t>(p) * m];
            for (int i = 0; i < m; i++) sums[i] += column[i] * x;
        }
        float* out = static_cast<float*>(c) + static_cast<size_t>(j) * ldc;
        for (int i = 0; i < m; i++) out[i] = times * sums[i] + (keep == 0.0f ? 0.0f : keep * out[i]);
    }
    return SUCCESS;
}
