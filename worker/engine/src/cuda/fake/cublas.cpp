// cuBLAS in host memory, for tests: libcublas.so.13. Products of f32, bf16 or f16, summed in f32; matrices are column-major.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

// The types of numbers, as the kernels round them.
#include "../kernels/kernels.cuh"

#define EXPORT extern "C" __attribute__((visibility("default")))

// As in cublas_api.h and library_types.h.
enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Type { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };
enum Compute { COMPUTE_32F = 68, COMPUTE_64F = 70 };

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
    if (type == BF16) return to_f32(static_cast<const bf16*>(matrix)[at]);
    if (type == F16) return to_f32(static_cast<const f16*>(matrix)[at]);
    return static_cast<const float*>(matrix)[at];
}

static void set_value(void* matrix, int type, size_t at, float x) {
    if (type == BF16) return from_f32(x, &static_cast<bf16*>(matrix)[at]);
    if (type == F16) return from_f32(x, &static_cast<f16*>(matrix)[at]);
    static_cast<float*>(matrix)[at] = x;
}

static bool is_type(int type) { return type == F32 || type == BF16 || type == F16; }

// A matrix as rows x columns, column after column, transposed where asked for.
static std::vector<float> unpacked(const void* matrix, int type, bool transposed, size_t rows, size_t columns, size_t stride) {
    std::vector<float> out(rows * columns);
    for (size_t j = 0; j < columns; j++)
        for (size_t i = 0; i < rows; i++) out[j * rows + i] = value(matrix, type, transposed ? i * stride + j : j * stride + i);
    return out;
}

// The product in f64.
static void multiply_f64(bool transpose_a, bool transpose_b, size_t m, size_t n, size_t k, double times, const double* a, size_t lda, const double* b,
                         size_t ldb, double keep, double* c, size_t ldc) {
    std::vector<double> sums(m);
    for (size_t j = 0; j < n; j++) {
        std::fill(sums.begin(), sums.end(), 0.0);
        for (size_t p = 0; p < k; p++) {
            double x = transpose_b ? b[p * ldb + j] : b[j * ldb + p];
            for (size_t i = 0; i < m; i++) sums[i] += (transpose_a ? a[i * lda + p] : a[p * lda + i]) * x;
        }
        for (size_t i = 0; i < m; i++) c[j * ldc + i] = times * sums[i] + (keep == 0.0 ? 0.0 : keep * c[j * ldc + i]);
    }
}

EXPORT int cublasGemmEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a, int type_a, int lda,
                        const void* b, int type_b, int ldb, const void* beta, void* c, int type_c, int ldc, int compute, int) {
    if (handle == nullptr) return NOT_INITIALIZED;
    // The products of obsdiff: a workspace is set, and neither TF32 nor reduced sums are allowed.
    auto* of = static_cast<Handle*>(handle);
    bool settled = of->workspace_bytes > 0 && of->math_mode == 16;
    bool sizes = m > 0 && n > 0 && k > 0 && lda >= (transpose_a ? k : m) && ldb >= (transpose_b ? n : k) && ldc >= m;
    if (!settled || !sizes) return INVALID_VALUE;
    if (type_a == F64 && type_b == F64 && type_c == F64 && compute == COMPUTE_64F) {
        double times, keep;
        memcpy(&times, alpha, sizeof times);
        memcpy(&keep, beta, sizeof keep);
        multiply_f64(transpose_a != 0, transpose_b != 0, m, n, k, times, static_cast<const double*>(a), lda, static_cast<const double*>(b), ldb, keep,
                     static_cast<double*>(c), ldc);
        return SUCCESS;
    }
    if ((type_c != F32 && type_c != type_a) || compute != COMPUTE_32F || type_a != type_b || !is_type(type_a)) return NOT_SUPPORTED;
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
        for (int i = 0; i < m; i++) {
            size_t at = static_cast<size_t>(j) * ldc + i;
            set_value(c, type_c, at, times * sums[i] + (keep == 0.0f ? 0.0f : keep * value(c, type_c, at)));
        }
    }
    return SUCCESS;
}

static size_t size_of(int type) { return type == F32 ? 4 : 2; }

EXPORT int cublasGemmStridedBatchedEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a, int type_a,
                                      int lda, long long step_a, const void* b, int type_b, int ldb, long long step_b, const void* beta, void* c,
                                      int type_c, int ldc, long long step_c, int count, int compute, int algorithm) {
    if (count < 1) return INVALID_VALUE;
    for (long long i = 0; i < count; i++) {
        auto* left = static_cast<const char*>(a) + i * step_a * static_cast<long long>(size_of(type_a));
        auto* right = static_cast<const char*>(b) + i * step_b * static_cast<long long>(size_of(type_b));
        auto* out = static_cast<char*>(c) + i * step_c * static_cast<long long>(size_of(type_c));
        int status = cublasGemmEx(handle, transpose_a, transpose_b, m, n, k, alpha, left, type_a, lda, right, type_b, ldb, beta, out, type_c, ldc,
                                  compute, algorithm);
        if (status != SUCCESS) return status;
    }
    return SUCCESS;
}
