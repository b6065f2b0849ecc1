// NVML in host memory, for tests: libnvidia-ml.so.1. It says what of the fake GPUs' memory is in use: what is allocated or kept for that, and what the context
// of a process takes, which cuMemGetInfo does not count here. The environment says how much that is:
//   FAKE_CUDA_CONTEXT   bytes (256 MiB)
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "of_driver.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// As in nvml.h.
enum Status { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_FOUND = 6 };

struct Memory {
    unsigned version;
    unsigned long long total, reserved, free, used;
};

constexpr unsigned VERSION = sizeof(Memory) | 2 << 24;

EXPORT int nvmlInit_v2() { return SUCCESS; }
EXPORT int nvmlShutdown() { return SUCCESS; }

// The first GPU's id alone is known, whose bytes are 0.
EXPORT int nvmlDeviceGetHandleByUUID(const char* uuid, void** device) {
    static char first;
    if (strcmp(uuid, "GPU-00000000-0000-0000-0000-000000000000") != 0) return NOT_FOUND;
    *device = &first;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(void*, Memory* memory) {
    if (memory->version != VERSION) return INVALID_ARGUMENT;
    const char* set = getenv("FAKE_CUDA_CONTEXT");
    unsigned long long context = set != nullptr ? strtoull(set, nullptr, 10) : 256ull << 20;
    memory->total = 1ull << 40;
    memory->reserved = 0;
    memory->used = fake_cuda_bytes_in_use() + (fake_cuda_has_context() ? context : 0);
    memory->free = memory->total - memory->used;
    return SUCCESS;
}
