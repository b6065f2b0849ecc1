// cuSOLVER in host memory, for tests: libcusolver.so.12. Cholesky factors and the inverses from them, in f32 and f64. A handle's stream comes to
// them after the call. As of the real one, a pivot that is NaN is none that fails. The triangle that is not asked for holds NaN afterwards: a
// library may work there. The environment says how many numbers it works in besides:
//   FAKE_CUSOLVER_WORKSPACE   at least so many (0)
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <limits>
#include <vector>

#include "of_driver.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// As in cusolver_common.h and cublas_api.h.
enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 3 };
enum Fill { LOWER = 0, UPPER = 1 };

struct Handle {
    void* stream = nullptr;
};

EXPORT int cusolverGetVersion(int* version) {
    *version = 12000;
    return SUCCESS;
}
EXPORT int cusolverDnCreate(void** handle) {
    if (!fake_cuda_has_current_context()) return NOT_INITIALIZED;
    *handle = new Handle;
    return SUCCESS;
}
EXPORT int cusolverDnDestroy(void* handle) {
    delete static_cast<Handle*>(handle);
    return SUCCESS;
}
EXPORT int cusolverDnSetStream(void* handle, void* stream) {
    static_cast<Handle*>(handle)->stream = stream;
    return SUCCESS;
}
EXPORT int cusolverDnSetDeterministicMode(void*, int) { return SUCCESS; }

// One triangle of a symmetric matrix, as if it were the lower one.
template <class T>
struct Triangle {
    T* values;
    int fill;
    size_t stride;

    T& at(size_t i, size_t j) const { return fill == LOWER ? values[j * stride + i] : values[i * stride + j]; }

    // Makes the other triangle, of n rows, NaN.
    void spoil_other(size_t n) const {
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < i; j++) at(j, i) = std::numeric_limits<T>::quiet_NaN();
    }
};

// L of L L^T takes the triangle's place. The first pivot that fails, counted from 1, or 0.
template <class T>
int factorised(const Triangle<T>& a, size_t n) {
    std::vector<T> row(n);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < i; j++) {
            T sum = a.at(i, j);
            for (size_t k = 0; k < j; k++) sum -= row[k] * a.at(j, k);
            row[j] = sum / a.at(j, j);
        }
        T pivot = a.at(i, i);
        for (size_t k = 0; k < i; k++) pivot -= row[k] * row[k];
        if (pivot <= 0) return static_cast<int>(i) + 1;
        for (size_t j = 0; j < i; j++) a.at(i, j) = row[j];
        a.at(i, i) = std::sqrt(pivot);
    }
    return 0;
}

// (L L^T)^-1 takes the place of L: Q = L^-1, then Q^T Q.
template <class T>
void inverted(const Triangle<T>& a, size_t n) {
    std::vector<T> q(n * n);
    for (size_t j = 0; j < n; j++) {
        q[j * n + j] = 1 / a.at(j, j);
        for (size_t i = j + 1; i < n; i++) {
            T sum = 0;
            for (size_t k = j; k < i; k++) sum -= a.at(i, k) * q[j * n + k];
            q[j * n + i] = sum / a.at(i, i);
        }
    }
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j <= i; j++) {
            T sum = 0;
            for (size_t k = i; k < n; k++) sum += q[i * n + k] * q[j * n + k];
            a.at(i, j) = sum;
        }
}

// Numbers that a call works in: an inverse in more of a row's than a factor.
static int least_length(int numbers) {
    const char* least = getenv("FAKE_CUSOLVER_WORKSPACE");
    return std::max(numbers, least != nullptr ? atoi(least) : 0);
}

static int buffer_size(int n, int stride, int wanted, int* length) {
    if (n < 1 || stride < n) return INVALID_VALUE;
    *length = wanted;
    return SUCCESS;
}

// Gives the stream a call that works on a matrix in place, and puts into `info` what it returns.
template <class T, class Call>
int enqueue(void* handle, int fill, int n, T* a, int stride, const T* work, int length, int wanted, int* info, Call call) {
    if (handle == nullptr || !fake_cuda_has_current_context()) return NOT_INITIALIZED;
    void* stream = static_cast<Handle*>(handle)->stream;
    bool held = fake_cuda_holds(work, sizeof(T) * static_cast<size_t>(length)) && fake_cuda_holds(info, sizeof *info);
    if (n < 1 || stride < n || length < wanted || !held) return INVALID_VALUE;
    size_t size = n, step = stride;
    if (!fake_cuda_holds(a, sizeof(T) * ((size - 1) * step + size))) return INVALID_VALUE;
    Triangle<T> triangle{static_cast<T*>(fake_cuda_host(a)), fill, step};
    auto* found = static_cast<int*>(fake_cuda_host(info));
    auto work_on_it = [=] {
        *found = call(triangle, size);
        triangle.spoil_other(size);
    };
    return fake_cuda_enqueue(stream, {a, work, info}, work_on_it) ? SUCCESS : INVALID_VALUE;
}

template <class T>
int potrf(void* handle, int fill, int n, T* a, int stride, const T* work, int length, int* info) {
    return enqueue(handle, fill, n, a, stride, work, length, least_length(n), info, factorised<T>);
}

template <class T>
int potri(void* handle, int fill, int n, T* a, int stride, const T* work, int length, int* info) {
    auto call = [](const Triangle<T>& triangle, size_t size) {
        inverted(triangle, size);
        return 0;
    };
    return enqueue(handle, fill, n, a, stride, work, length, least_length(2 * n), info, call);
}

#define FOR_TYPE(letter, T)                                                                                                         \
    EXPORT int cusolverDn##letter##potrf_bufferSize(void*, int, int n, T*, int stride, int* length) {                               \
        return buffer_size(n, stride, least_length(n), length);                                                                     \
    }                                                                                                                               \
    EXPORT int cusolverDn##letter##potri_bufferSize(void*, int, int n, T*, int stride, int* length) {                               \
        return buffer_size(n, stride, least_length(2 * n), length);                                                                 \
    }                                                                                                                               \
    EXPORT int cusolverDn##letter##potrf(void* handle, int fill, int n, T* a, int stride, T* work, int length, int* info) {         \
        return potrf(handle, fill, n, a, stride, work, length, info);                                                               \
    }                                                                                                                               \
    EXPORT int cusolverDn##letter##potri(void* handle, int fill, int n, T* a, int stride, T* work, int length, int* info) {         \
        return potri(handle, fill, n, a, stride, work, length, info);                                                               \
    }
FOR_TYPE(S, float)
FOR_TYPE(D, double)
