// A CUDA driver in host memory: contexts, streams, events, memory and copies, as far as groups need them.
//
// A stream is a thread that runs what it is given in order, so that calls return before their work is done, as on a GPU. Addresses of
// device memory have a bit set that no host address has: a program that follows one itself crashes here, too.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <malloc.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <set>

#include "stream.h"

namespace {

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    NOT_READY = 600,
};

constexpr uint64_t DEVICE_BIT = uint64_t{1} << 62;
constexpr int DEVICES = 8;

std::atomic<bool> initialized{false};
int contexts[DEVICES];
thread_local void *current = nullptr;

// Records that are not reached yet; shared with the stream, as an event may be destroyed before.
struct Event {
    std::shared_ptr<std::atomic<int>> pending = std::make_shared<std::atomic<int>>(0);
};

// Addresses that copies still to be done go to and come from, and at which the fake NCCL still works.
std::mutex in_use_mutex;
std::multiset<const void *> in_use;

int copy(void *to, const void *from, size_t bytes, void *stream) {
    if (current == nullptr) {
        return INVALID_CONTEXT;
    }
    {
        std::lock_guard<std::mutex> lock(in_use_mutex);
        in_use.insert({to, from});
    }
    static_cast<Stream *>(stream)->add([=] {
        std::memcpy(to, from, bytes);
        std::lock_guard<std::mutex> lock(in_use_mutex);
        in_use.erase(in_use.find(to));
        in_use.erase(in_use.find(from));
    });
    return SUCCESS;
}

// The real driver may wait, or not: a program that relies on it ends here.
int free_memory(void *memory) {
    if (current == nullptr) {
        return INVALID_CONTEXT;
    }
    std::lock_guard<std::mutex> lock(in_use_mutex);
    auto used = in_use.lower_bound(memory);
    if (used != in_use.end() && *used < static_cast<char *>(memory) + malloc_usable_size(memory)) {
        std::fprintf(stderr, "fake CUDA: memory is freed in which a stream still works\n");
        std::abort();
    }
    std::free(memory);
    return SUCCESS;
}

} // namespace

extern "C" {

// Where device memory lies in this process. Not part of the driver: for the fake NCCL.
void *fake_cuda_host(uint64_t address) {
    return reinterpret_cast<void *>(address & ~DEVICE_BIT);
}

// Where the fake NCCL begins to work, and where it has ended.
void fake_cuda_use(void *memory) {
    std::lock_guard<std::mutex> lock(in_use_mutex);
    in_use.insert(memory);
}

void fake_cuda_leave(void *memory) {
    std::lock_guard<std::mutex> lock(in_use_mutex);
    in_use.erase(in_use.find(memory));
}

int cuInit(unsigned) {
    initialized = true;
    return SUCCESS;
}

int cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}

int cuGetErrorName(int, const char **words) {
    *words = "CUDA_ERROR_OF_THE_FAKE_DRIVER";
    return SUCCESS;
}

int cuGetErrorString(int error, const char **words) {
    *words = error == INVALID_CONTEXT ? "no context is current" : "an error of the fake driver";
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    *count = DEVICES;
    return initialized ? SUCCESS : NOT_INITIALIZED;
}

int cuDeviceGet(int *device, int ordinal) {
    if (!initialized) {
        return NOT_INITIALIZED;
    }
    if (ordinal < 0 || ordinal >= DEVICES) {
        return INVALID_DEVICE;
    }
    *device = ordinal;
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = &contexts[device];
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int) {
    return SUCCESS;
}

int cuCtxSetCurrent(void *context) {
    current = context;
    return SUCCESS;
}

int cuStreamCreate(void **stream, unsigned) {
    if (current == nullptr) {
        return INVALID_CONTEXT;
    }
    *stream = new Stream;
    return SUCCESS;
}

int cuStreamDestroy_v2(void *stream) {
    if (current == nullptr) {
        return INVALID_CONTEXT;
    }
    delete static_cast<Stream *>(stream);
    return SUCCESS;
}

int cuStreamSynchronize(void *stream) {
    if (current == nullptr) {
        return INVALID_CONTEXT;
    }
    static_cast<Stream *>(stream)->wait();
    return SUCCESS;
}

int cuLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
    if (current == nullptr) {
        return INVALID_CONTEXT;
    }
    static_cast<Stream *>(stream)->add([function, data] { function(data); });
    return SUCCESS;
}

int cuEventCreate(void **event, unsigned) {
    if (current == nullptr) {
        return INVALID_CONTEXT;
    }
    *event = new Event;
    return SUCCESS;
}

int cuEventDestroy_v2(void *event) {
    delete static_cast<Event *>(event);
    return SUCCESS;
}

int cuEventRecord(void *event, void *stream) {
    if (current == nullptr) {
        return INVALID_CONTEXT;
    }
    auto pending = static_cast<Event *>(event)->pending;
    ++*pending;
    static_cast<Stream *>(stream)->add([pending] { --*pending; });
    return SUCCESS;
}

int cuEventQuery(void *event) {
    return *static_cast<Event *>(event)->pending == 0 ? SUCCESS : NOT_READY;
}

int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    if (current == nullptr) {
        return INVALID_CONTEXT;
    }
    void *memory = bytes == 0 ? nullptr : std::malloc(bytes);
    if (memory == nullptr) {
        return bytes == 0 ? INVALID_VALUE : OUT_OF_MEMORY;
    }
    // What a program does not write itself is not zero by luck.
    std::memset(memory, 0xA5, bytes);
    *address = reinterpret_cast<uint64_t>(memory) | DEVICE_BIT;
    return SUCCESS;
}

int cuMemFree_v2(uint64_t address) {
    return free_memory(fake_cuda_host(address));
}

int cuMemHostAlloc(void **memory, size_t bytes, unsigned) {
    if (current == nullptr) {
        return INVALID_CONTEXT;
    }
    *memory = std::malloc(bytes);
    return *memory == nullptr ? OUT_OF_MEMORY : SUCCESS;
}

int cuMemFreeHost(void *memory) {
    return free_memory(memory);
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    return copy(fake_cuda_host(to), from, bytes, stream);
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    return copy(to, fake_cuda_host(from), bytes, stream);
}

} // extern "C"
