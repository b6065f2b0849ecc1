// A CUDA driver in host memory, for tests: libcuda.so.1. Kernels run on the processor, as `shim/` compiles them, when they are launched; a stream
// has something to wait for only where the fake NCCL works on it. It counts what crosses between host and device, and is told by the environment what to lack:
//   FAKE_CUDA_GPUS        how many GPUs there are (1)
//   FAKE_CUDA_CAPABILITY  their compute capability, times ten (90)
//   FAKE_CUDA_VERSION     the CUDA version that the driver supports, as cuDriverGetVersion says it (13000)
//   FAKE_CUDA_MEMORY      bytes of memory of a GPU (1 GiB)
#include "../shim/kernels.h"

#include <atomic>
#include <map>
#include <set>
#include <string>
#include <tuple>

// As in cuda.h.
enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    NOT_FOUND = 500,
    NOT_READY = 600,
};
enum PoolAttribute { POOL_RESERVED = 5, POOL_USED = 7, POOL_MOST_USED = 8 };
enum Attribute { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, MEMORY_POOLS_SUPPORTED = 115 };

#define EXPORT extern "C" __attribute__((visibility("default")))

#include "streams.h"

static unsigned long long setting(const char* name, unsigned long long otherwise) {
    const char* value = getenv(name);
    return value != nullptr ? strtoull(value, nullptr, 10) : otherwise;
}

static std::atomic<unsigned long long> bytes_to_host, bytes_to_device, copies_to_host, copies_to_device, launches;
// Of memory and of launches.
static std::mutex guard;
static std::map<char*, std::pair<char*, size_t>> allocations;
static size_t allocated_bytes = 0, most_bytes = 0, most_ever = 0;
// Addresses that the fake NCCL still works at.
static std::multiset<char*> in_use;

// What tests ask of the library itself.
EXPORT unsigned long long fake_cuda_bytes_to_host() { return bytes_to_host; }
EXPORT unsigned long long fake_cuda_bytes_to_device() { return bytes_to_device; }
EXPORT unsigned long long fake_cuda_copies_to_host() { return copies_to_host; }
EXPORT unsigned long long fake_cuda_copies_to_device() { return copies_to_device; }
EXPORT unsigned long long fake_cuda_launches() { return launches; }
EXPORT unsigned long long fake_cuda_most_bytes() { return most_bytes; }
// The most bytes since this was last asked, besides those that are allocated now: what came and went.
EXPORT unsigned long long fake_cuda_passing_bytes() {
    std::lock_guard<std::mutex> held(guard);
    size_t passing = most_bytes - allocated_bytes;
    most_bytes = allocated_bytes;
    return passing;
}
EXPORT unsigned long long fake_cuda_allocations() {
    std::lock_guard<std::mutex> held(guard);
    return allocations.size();
}

using Call = std::function<void()> (*)(void**);

template <class... P, size_t... I>
std::function<void()> with(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
    std::tuple<P...> values{*static_cast<P*>(arguments[I])...};
    return [kernel, values] { std::apply(kernel, values); };
}

template <auto kernel>
struct Launch;
template <class... P, void (*kernel)(P...)>
struct Launch<kernel> {
    static std::function<void()> of(void** arguments) { return with(kernel, arguments, std::index_sequence_for<P...>()); }
};

struct Kernel {
    std::string name;
    Call call;
};

#define KERNEL(name) {#name, {#name, Launch<name>::of}},
static std::map<std::string, Kernel> KERNELS = {FOR_EACH_KERNEL(KERNEL)};

// Kernels, without their types, whose threads have no barrier: they run as plain functions, which is much faster.
static const std::set<std::string> INDEPENDENT = {"rotate",         "gelu",     "add_gated", "add_bias",         "limit",
                                                  "join_columns",   "pad_rows", "add_tile",  "column_squares",   "add_column",
                                                  "admit_observation", "silu", "add_rows",
                                                  "diagonal",       "unpack",   "scale",     "finish_product",   "widen",
                                                  "round_to_bf16"};

EXPORT int cuGetErrorName(int error, const char** name) {
    *name = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : error == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR";
    return SUCCESS;
}

EXPORT int cuGetErrorString(int error, const char** text) {
    switch (error) {
        case OUT_OF_MEMORY: *text = "out of memory"; break;
        case NO_DEVICE: *text = "no CUDA-capable device is detected"; break;
        case INVALID_DEVICE: *text = "invalid device ordinal"; break;
        case NOT_FOUND: *text = "named symbol not found"; break;
        default: *text = "invalid argument";
    }
    return SUCCESS;
}

EXPORT int cuInit(unsigned) { return setting("FAKE_CUDA_GPUS", 1) == 0 ? NO_DEVICE : SUCCESS; }

EXPORT int cuDriverGetVersion(int* version) {
    *version = static_cast<int>(setting("FAKE_CUDA_VERSION", 13000));
    return SUCCESS;
}

EXPORT int cuDeviceGetCount(int* count) {
    *count = static_cast<int>(setting("FAKE_CUDA_GPUS", 1));
    return SUCCESS;
}

EXPORT int cuDeviceGet(int* device, int ordinal) {
    if (ordinal < 0 || ordinal >= static_cast<int>(setting("FAKE_CUDA_GPUS", 1))) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

EXPORT int cuDeviceGetName(char* name, int length, int) {
    snprintf(name, length, "Fake GPU");
    return SUCCESS;
}

EXPORT int cuDeviceGetUuid_v2(char* uuid, int device) {
    memset(uuid, device, 16);
    return SUCCESS;
}

EXPORT int cuDeviceGetPCIBusId(char* id, int length, int device) {
    snprintf(id, length, "0000:%02x:00.0", device + 1);
    return SUCCESS;
}

EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
    int capability = static_cast<int>(setting("FAKE_CUDA_CAPABILITY", 90));
    switch (attribute) {
        case CAPABILITY_MAJOR: *value = capability / 10; break;
        case CAPABILITY_MINOR: *value = capability % 10; break;
        case MEMORY_POOLS_SUPPORTED: *value = 1; break;
        default: *value = 0;
    }
    return SUCCESS;
}

EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = setting("FAKE_CUDA_MEMORY", 1ull << 30);
    return SUCCESS;
}

EXPORT int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    std::lock_guard<std::mutex> held(guard);
    *total = setting("FAKE_CUDA_MEMORY", 1ull << 30);
    *free_bytes = *total - allocated_bytes;
    return SUCCESS;
}

// A context is the address of one of these.
static char contexts[64];
static thread_local void* current_context = nullptr;

EXPORT int cuDevicePrimaryCtxRetain(void** context, int device) {
    if (device < 0 || device >= 64) return INVALID_DEVICE;
    *context = &contexts[device];
    return SUCCESS;
}
EXPORT int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
EXPORT int cuCtxGetCurrent(void** context) {
    *context = current_context;
    return SUCCESS;
}
EXPORT int cuCtxSetCurrent(void* context) {
    current_context = context;
    return SUCCESS;
}
EXPORT int cuCtxGetDevice(int* device) {
    *device = current_context == nullptr ? 0 : static_cast<int>(static_cast<char*>(current_context) - contexts);
    return SUCCESS;
}
EXPORT int cuCtxSynchronize() { return SUCCESS; }

// Where device memory lies in this process: the fake NCCL asks.
EXPORT void* fake_cuda_host(unsigned long long address) { return reinterpret_cast<void*>(address); }
// It says where it begins to work, and where it has ended.
EXPORT void fake_cuda_use(void* memory) {
    std::lock_guard<std::mutex> held(guard);
    in_use.insert(static_cast<char*>(memory));
}
EXPORT void fake_cuda_leave(void* memory) {
    std::lock_guard<std::mutex> held(guard);
    in_use.erase(in_use.find(static_cast<char*>(memory)));
}

// Memory ends where its pages do, up to 16 bytes of alignment, and the page after it cannot be touched. It holds a NaN pattern at first.
static int allocate(unsigned long long* pointer, size_t bytes) {
    std::lock_guard<std::mutex> held(guard);
    if (bytes == 0) return INVALID_VALUE;
    if (allocated_bytes + bytes > setting("FAKE_CUDA_MEMORY", 1ull << 30)) return OUT_OF_MEMORY;
    size_t page = 4096, aligned = (bytes + 15) / 16 * 16, whole = (aligned + page - 1) / page * page;
    void* pages = mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(static_cast<char*>(pages) + whole, page, PROT_NONE) != 0) return OUT_OF_MEMORY;
    char* start = static_cast<char*>(pages) + whole - aligned;
    memset(start, 0xff, aligned);
    allocations[start] = {static_cast<char*>(pages), bytes};
    allocated_bytes += bytes;
    most_bytes = std::max(most_bytes, allocated_bytes);
    most_ever = std::max(most_ever, allocated_bytes);
    *pointer = reinterpret_cast<unsigned long long>(start);
    return SUCCESS;
}

static int release(unsigned long long pointer) {
    std::lock_guard<std::mutex> held(guard);
    auto found = allocations.find(reinterpret_cast<char*>(pointer));
    if (found == allocations.end()) return INVALID_VALUE;
    auto [pages, bytes] = found->second;
    auto used = in_use.lower_bound(found->first);
    if (used != in_use.end() && *used < found->first + bytes) {
        fprintf(stderr, "fake CUDA: memory is freed that the fake NCCL still works in\n");
        abort();
    }
    allocated_bytes -= bytes;
    size_t page = 4096, aligned = (bytes + 15) / 16 * 16, whole = (aligned + page - 1) / page * page;
    munmap(pages, whole + page);
    allocations.erase(found);
    return SUCCESS;
}

// Whether so many bytes from here on lie within one allocation.
static bool is_allocated(unsigned long long pointer, size_t bytes) {
    std::lock_guard<std::mutex> held(guard);
    char* start = reinterpret_cast<char*>(pointer);
    auto after = allocations.upper_bound(start);
    if (after == allocations.begin()) return false;
    auto& [first, of] = *std::prev(after);
    return start + bytes <= first + of.second;
}

// The pool of memory that asynchronous allocations come from.
static char default_pool;
EXPORT int cuDeviceGetDefaultMemPool(void** pool, int) {
    *pool = &default_pool;
    return SUCCESS;
}
EXPORT int cuMemPoolGetAttribute(void* pool, int attribute, void* value) {
    std::lock_guard<std::mutex> held(guard);
    if (pool != &default_pool) return INVALID_VALUE;
    switch (attribute) {
        case POOL_RESERVED:
        case POOL_USED: *static_cast<unsigned long long*>(value) = allocated_bytes; return SUCCESS;
        case POOL_MOST_USED: *static_cast<unsigned long long*>(value) = most_ever; return SUCCESS;
        default: return INVALID_VALUE;
    }
}
EXPORT int cuMemPoolTrimTo(void* pool, size_t) { return pool == &default_pool ? SUCCESS : INVALID_VALUE; }
EXPORT int cuMemPoolSetAttribute(void* pool, int, void* value) { return pool == &default_pool && value != nullptr ? SUCCESS : INVALID_VALUE; }

EXPORT int cuMemAlloc_v2(unsigned long long* pointer, size_t bytes) { return allocate(pointer, bytes); }
EXPORT int cuMemAllocAsync(unsigned long long* pointer, size_t bytes, void*) { return allocate(pointer, bytes); }
EXPORT int cuMemFree_v2(unsigned long long pointer) { return release(pointer); }
EXPORT int cuMemFreeAsync(unsigned long long pointer, void*) { return release(pointer); }
EXPORT int cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    *pointer = malloc(bytes);
    return *pointer != nullptr ? SUCCESS : OUT_OF_MEMORY;
}
EXPORT int cuMemFreeHost(void* pointer) {
    free(pointer);
    return SUCCESS;
}

static int to_device(unsigned long long to, const void* from, size_t bytes, void* stream) {
    if (!is_allocated(to, bytes)) return INVALID_VALUE;
    in_order(stream, [=] { memcpy(reinterpret_cast<void*>(to), from, bytes); });
    bytes_to_device += bytes;
    copies_to_device += 1;
    return SUCCESS;
}

static int to_host(void* to, unsigned long long from, size_t bytes, void* stream) {
    if (!is_allocated(from, bytes)) return INVALID_VALUE;
    in_order(stream, [=] { memcpy(to, reinterpret_cast<void*>(from), bytes); });
    bytes_to_host += bytes;
    copies_to_host += 1;
    return SUCCESS;
}

static int within_device(unsigned long long to, unsigned long long from, size_t bytes) {
    if (!is_allocated(to, bytes) || !is_allocated(from, bytes)) return INVALID_VALUE;
    memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
    return SUCCESS;
}

static int set_bytes(unsigned long long to, unsigned char value, size_t bytes) {
    if (!is_allocated(to, bytes)) return INVALID_VALUE;
    memset(reinterpret_cast<void*>(to), value, bytes);
    return SUCCESS;
}

EXPORT int cuMemcpyHtoD_v2(unsigned long long to, const void* from, size_t bytes) { return to_device(to, from, bytes, nullptr); }
EXPORT int cuMemcpyHtoDAsync_v2(unsigned long long to, const void* from, size_t bytes, void* stream) { return to_device(to, from, bytes, stream); }
EXPORT int cuMemcpyDtoH_v2(void* to, unsigned long long from, size_t bytes) { return to_host(to, from, bytes, nullptr); }
EXPORT int cuMemcpyDtoHAsync_v2(void* to, unsigned long long from, size_t bytes, void* stream) { return to_host(to, from, bytes, stream); }
EXPORT int cuMemcpyDtoD_v2(unsigned long long to, unsigned long long from, size_t bytes) { return within_device(to, from, bytes); }
EXPORT int cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, size_t bytes, void*) { return within_device(to, from, bytes); }
EXPORT int cuMemsetD8_v2(unsigned long long to, unsigned char value, size_t bytes) { return set_bytes(to, value, bytes); }
EXPORT int cuMemsetD8Async(unsigned long long to, unsigned char value, size_t bytes, void*) { return set_bytes(to, value, bytes); }

// A module is the text of its PTX, which tells its kernels; what runs is the processor's code of the same source.
EXPORT int cuModuleLoadData(void** module, const void* image) {
    *module = new std::string(static_cast<const char*>(image));
    return SUCCESS;
}
EXPORT int cuModuleUnload(void* module) {
    delete static_cast<std::string*>(module);
    return SUCCESS;
}
EXPORT int cuModuleGetFunction(void** function, void* module, const char* name) {
    auto kernel = KERNELS.find(name);
    bool in_module = static_cast<std::string*>(module)->find(".entry " + std::string(name) + "(") != std::string::npos;
    if (kernel == KERNELS.end() || !in_module) return NOT_FOUND;
    *function = &kernel->second;
    return SUCCESS;
}

EXPORT int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                          unsigned shared, void*, void** arguments, void**) {
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_y > 65535 || grid_z > 65535) return INVALID_VALUE;
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> held(one_at_a_time);
    launches += 1;
    auto* kernel = static_cast<Kernel*>(function);
    shim::threads_never_wait = INDEPENDENT.count(kernel->name.substr(0, kernel->name.rfind('_'))) != 0;
    shim::launch(kernel->name.c_str(), dim3(grid_x, grid_y, grid_z), dim3(block_x, block_y, block_z), shared, kernel->call(arguments));
    return SUCCESS;
}
