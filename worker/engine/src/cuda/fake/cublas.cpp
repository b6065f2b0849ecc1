// cuBLAS in host memory, for tests: libcublas.so.13. Products of f32, bf16 or f16, summed in f32; matrices are column-major. A handle's stream
// comes to a product after the call. The environment says how slow and how old it is:
//   FAKE_CUBLAS_MILLISECONDS   what a product takes at least (0)
//   FAKE_CUBLAS_VERSION        its version, as cublasGetVersion says it (130000)
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

// The types of numbers, as the kernels round them.
#include "../kernels/kernels.cuh"
#include "of_driver.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// As in cublas_api.h and library_types.h.
enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Type { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };
enum Compute { COMPUTE_32F = 68, COMPUTE_64F = 70 };

struct Handle {
    void* stream = nullptr;
    size_t workspace_bytes = 0;
    unsigned math_mode = 0;
};

EXPORT int cublasCreate_v2(void** handle) {
    if (!fake_cuda_has_current_context()) return NOT_INITIALIZED;
    *handle = new Handle;
    return SUCCESS;
}
EXPORT int cublasDestroy_v2(void* handle) {
    delete static_cast<Handle*>(handle);
    return SUCCESS;
}
// Takes back a workspace that was set.
EXPORT int cublasSetStream_v2(void* handle, void* stream) {
    if (handle == nullptr) return NOT_INITIALIZED;
    static_cast<Handle*>(handle)->stream = stream;
    static_cast<Handle*>(handle)->workspace_bytes = 0;
    return SUCCESS;
}
EXPORT int cublasSetWorkspace_v2(void* handle, void* workspace, size_t bytes) {
    if (handle == nullptr) return NOT_INITIALIZED;
    if (reinterpret_cast<uintptr_t>(workspace) % 256 != 0 || !fake_cuda_holds(workspace, bytes)) return INVALID_VALUE;
    static_cast<Handle*>(handle)->workspace_bytes = bytes;
    return SUCCESS;
}
EXPORT int cublasSetMathMode(void* handle, unsigned mode) {
    if (handle == nullptr) return NOT_INITIALIZED;
    static_cast<Handle*>(handle)->math_mode = mode;
    return SUCCESS;
}
EXPORT int cublasGetVersion_v2(void*, int* version) {
    const char* stated = getenv("FAKE_CUBLAS_VERSION");
    *version = stated != nullptr ? atoi(stated) : 130000;
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

// The product in f32 of numbers of one type.
static void multiply(bool transpose_a, bool transpose_b, size_t m, size_t n, size_t k, float times, const void* a, size_t lda, const void* b, size_t ldb,
                     int type, float keep, void* c, int type_c, size_t ldc) {
    auto left = unpacked(a, type, transpose_a, m, k, lda), right = unpacked(b, type, transpose_b, k, n, ldb);
    std::vector<float> sums(m);
    for (size_t j = 0; j < n; j++) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (size_t p = 0; p < k; p++) {
            float x = right[j * k + p];
            const float* column = &left[p * m];
            for (size_t i = 0; i < m; i++) sums[i] += column[i] * x;
        }
        for (size_t i = 0; i < m; i++) {
            size_t at = j * ldc + i;
            set_value(c, type_c, at, times * sums[i] + (keep == 0.0f ? 0.0f : keep * value(c, type_c, at)));
        }
    }
}

static size_t size_of(int type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }

// Bytes from the first number of a matrix of so many rows and columns to its last one.
static size_t extent(int type, size_t rows, size_t columns, size_t stride) { return size_of(type) * ((columns - 1) * stride + rows); }

static bool is_aligned(const void* matrix, int type) { return reinterpret_cast<uintptr_t>(matrix) % size_of(type) == 0; }

template <class T>
T number(const void* scale) {
    T number;
    memcpy(&number, scale, sizeof number);
    return number;
}

EXPORT int cublasGemmEx(void* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a, int type_a, int lda,
                        const void* b, int type_b, int ldb, const void* beta, void* c, int type_c, int ldc, int compute, int) {
    if (handle == nullptr || !fake_cuda_has_current_context()) return NOT_INITIALIZED;
    // The products of obsdiff: a workspace is set, and neither TF32 nor reduced sums are allowed.
    auto* of = static_cast<Handle*>(handle);
    bool settled = of->workspace_bytes > 0 && of->math_mode == 16;
    bool sizes = m > 0 && n > 0 && k > 0 && lda >= (transpose_a ? k : m) && ldb >= (transpose_b ? n : k) && ldc >= m;
    if (!settled || !sizes) return INVALID_VALUE;
    bool in_f64 = type_a == F64 && type_c == F64 && compute == COMPUTE_64F;
    bool in_f32 = is_type(type_a) && (type_c == F32 || type_c == type_a) && compute == COMPUTE_32F;
    if (type_a != type_b || (!in_f64 && !in_f32)) return NOT_SUPPORTED;
    bool aligned = is_aligned(a, type_a) && is_aligned(b, type_b) && is_aligned(c, type_c);
    bool held = aligned && fake_cuda_holds(a, transpose_a ? extent(type_a, k, m, lda) : extent(type_a, m, k, lda)) &&
                fake_cuda_holds(b, transpose_b ? extent(type_b, n, k, ldb) : extent(type_b, k, n, ldb)) &&
                fake_cuda_holds(c, extent(type_c, m, n, ldc));
    if (!held) return INVALID_VALUE;
    const void *left = fake_cuda_host(a), *right = fake_cuda_host(b);
    void* out = fake_cuda_host(c);
    // The scales are the caller's, and may be gone when the stream comes to the product.
    double times = in_f64 ? number<double>(alpha) : number<float>(alpha), keep = in_f64 ? number<double>(beta) : number<float>(beta);
    const char* least = getenv("FAKE_CUBLAS_MILLISECONDS");
    std::chrono::milliseconds pause(least != nullptr ? atoi(least) : 0);
    bool given = fake_cuda_enqueue(of->stream, {a, b, c}, [=] {
        std::this_thread::sleep_for(pause);
        if (in_f64) {
            multiply_f64(transpose_a != 0, transpose_b != 0, m, n, k, times, static_cast<const double*>(left), lda, static_cast<const double*>(right), ldb,
                         keep, static_cast<double*>(out), ldc);
        } else {
            multiply(transpose_a != 0, transpose_b != 0, m, n, k, static_cast<float>(times), left, lda, right, ldb, type_a, static_cast<float>(keep), out,
                     type_c, ldc);
        }
    });
    return given ? SUCCESS : INVALID_VALUE;
}

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
