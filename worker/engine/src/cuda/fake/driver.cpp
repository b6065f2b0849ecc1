// A CUDA driver in host memory, for tests: libcuda.so.1. Kernels run on the processor, as `shim/` compiles them, when their stream comes to
// them (`streams.h`). It holds programs to the bounds and the life of memory, counts what crosses between host and device (`memory.h`), and is
// told by the environment what to lack:
//   FAKE_CUDA_GPUS        how many GPUs there are (1)
//   FAKE_CUDA_CAPABILITY  their compute capability, times ten (90)
//   FAKE_CUDA_VERSION     the CUDA version that the driver supports, as cuDriverGetVersion says it (13000)
//   FAKE_CUDA_SIDES_FIRST 1: streams besides the first one begin at once, not as late as they may (0)
//   FAKE_CUDA_MEMORY      bytes of memory of a GPU (1 GiB)
//   FAKE_CUDA_COMPILES    0 where it compiles no module, as a driver whose compiler is broken (1)
#include "../shim/kernels.h"

#include <atomic>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <type_traits>

// As in cuda.h.
enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    NO_CONTEXT = 201,
    NO_CODE_FOR_GPU = 209,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
};
enum JitOption { JIT_ERROR_LOG = 5, JIT_ERROR_LOG_BYTES = 6 };
enum EventFlag { EVENT_WITHOUT_TIME = 2 };
enum PoolAttribute { POOL_THRESHOLD = 4, POOL_RESERVED = 5, POOL_USED = 7, POOL_MOST_USED = 8 };
enum Attribute { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76, MEMORY_POOLS_SUPPORTED = 115 };

// Limits of a launch: blocks, and bytes of shared memory, declared by the kernel or not, that it gets without asking for more.
constexpr unsigned MOST_BLOCKS = 0x7fffffff, MOST_SHARED = 48 << 10;

#define EXPORT extern "C" __attribute__((visibility("default")))

static unsigned long long setting(const char* name, unsigned long long otherwise) {
    const char* value = getenv(name);
    return value != nullptr ? strtoull(value, nullptr, 10) : otherwise;
}

// Whether the driver was started.
static std::atomic<bool> initialized;
#define NEEDS_START                               \
    do {                                          \
        if (!initialized) return NOT_INITIALIZED; \
    } while (false)

#include "memory.h"

static std::atomic<unsigned long long> launches, launches_ahead;
EXPORT unsigned long long fake_cuda_launches() { return launches; }
EXPORT unsigned long long fake_cuda_launches_ahead() { return launches_ahead; }

// What a launch calls, and the addresses that it is given, as the program sees them.
struct Bound {
    std::function<void()> call;
    std::vector<uint64_t> addresses;
    bool is_aligned = true;
};

// A kernel follows addresses of the device's memory to where it lies. A GPU reads and writes numbers at multiples of their size alone.
template <class P>
P argument(void* at, Bound& bound) {
    P value = *static_cast<P*>(at);
    if constexpr (std::is_pointer_v<P>) {
        auto address = reinterpret_cast<uint64_t>(value);
        if (address != 0) bound.addresses.push_back(address);
        if (address % alignof(std::remove_pointer_t<P>) != 0) bound.is_aligned = false;
        return reinterpret_cast<P>(host(address));
    } else {
        return value;
    }
}

template <class... P, size_t... I>
Bound with(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
    Bound bound;
    std::tuple<P...> values{argument<P>(arguments[I], bound)...};
    bound.call = [kernel, values] { std::apply(kernel, values); };
    return bound;
}

template <auto kernel>
struct Launch;
template <class... P, void (*kernel)(P...)>
struct Launch<kernel> {
    static Bound of(void** arguments) { return with(kernel, arguments, std::index_sequence_for<P...>()); }
};

struct Kernel {
    std::string name;
    Bound (*bind)(void**);
};

#define KERNEL(name) {#name, {#name, Launch<name>::of}},
// Never destroyed: streams may work until the process ends.
static auto& KERNELS = *new std::map<std::string, Kernel>{FOR_EACH_KERNEL(KERNEL)};

// Kernels, without their types, whose threads have no barrier: they run as plain functions, which is much faster.
static const auto& INDEPENDENT = *new std::set<std::string>{"rotate",       "gelu",      "add_gated", "add_bias", "limit",
                                                            "join_columns", "pad_rows",  "add_tile",  "column_squares",
                                                            "add_column",   "admit_observation",      "silu",     "add_rows",
                                                            "diagonal",     "unpack",    "scale",     "finish_product",
                                                            "widen",        "round_to_bf16", "last_column", "unpack_moments",
                                                            "damp"};

EXPORT int cuGetErrorName(int error, const char** name) {
    *name = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : error == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR";
    return SUCCESS;
}

EXPORT int cuGetErrorString(int error, const char** text) {
    switch (error) {
        case OUT_OF_MEMORY: *text = "out of memory"; break;
        case NO_DEVICE: *text = "no CUDA-capable device is detected"; break;
        case INVALID_DEVICE: *text = "invalid device ordinal"; break;
        case NO_CONTEXT: *text = "invalid device context"; break;
        case NO_CODE_FOR_GPU: *text = "no kernel image is available for execution on the device"; break;
        case INVALID_PTX: *text = "a PTX JIT compilation failed"; break;
        case UNSUPPORTED_PTX_VERSION: *text = "the provided PTX was compiled with an unsupported toolchain."; break;
        case INVALID_HANDLE: *text = "invalid resource handle"; break;
        case NOT_FOUND: *text = "named symbol not found"; break;
        default: *text = "invalid argument";
    }
    return SUCCESS;
}

EXPORT int cuInit(unsigned) {
    initialized = true;
    return setting("FAKE_CUDA_GPUS", 1) == 0 ? NO_DEVICE : SUCCESS;
}

EXPORT int cuDriverGetVersion(int* version) {
    *version = static_cast<int>(setting("FAKE_CUDA_VERSION", 13000));
    return SUCCESS;
}

EXPORT int cuDeviceGetCount(int* count) {
    NEEDS_START;
    *count = static_cast<int>(setting("FAKE_CUDA_GPUS", 1));
    return SUCCESS;
}

EXPORT int cuDeviceGet(int* device, int ordinal) {
    NEEDS_START;
    if (ordinal < 0 || ordinal >= static_cast<int>(setting("FAKE_CUDA_GPUS", 1))) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

EXPORT int cuDeviceGetName(char* name, int length, int) {
    NEEDS_START;
    snprintf(name, length, "Fake GPU");
    return SUCCESS;
}

EXPORT int cuDeviceGetUuid_v2(char* uuid, int device) {
    NEEDS_START;
    memset(uuid, device, 16);
    return SUCCESS;
}

EXPORT int cuDeviceGetPCIBusId(char* id, int length, int device) {
    snprintf(id, length, "0000:%02x:00.0", device + 1);
    return SUCCESS;
}

EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
    NEEDS_START;
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
    *bytes = memory_of_gpu();
    return SUCCESS;
}

static std::atomic<bool> has_context;
EXPORT bool fake_cuda_has_context() { return has_context; }
EXPORT int cuDevicePrimaryCtxRetain(void** context, int device) {
    NEEDS_START;
    if (device < 0 || device >= 64) return INVALID_DEVICE;
    has_context = true;
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

// What a compiler of PTX says of a module: nothing is compiled. Versions of PTX from 8 on follow those of CUDA, which are higher by 4.
static int compiled(const std::string& ptx) {
    int major = 0, minor = 0, capability = 0;
    size_t version = ptx.find(".version "), target = ptx.find(".target sm_");
    if (version == std::string::npos || target == std::string::npos) return INVALID_PTX;
    if (sscanf(&ptx[version], ".version %d.%d", &major, &minor) != 2 || sscanf(&ptx[target], ".target sm_%d", &capability) != 1) return INVALID_PTX;
    if (1000 * (major + 4) + 10 * minor > static_cast<int>(setting("FAKE_CUDA_VERSION", 13000))) return UNSUPPORTED_PTX_VERSION;
    if (capability > static_cast<int>(setting("FAKE_CUDA_CAPABILITY", 90))) return NO_CODE_FOR_GPU;
    return setting("FAKE_CUDA_COMPILES", 1) == 0 ? INVALID_PTX : SUCCESS;
}

// A kernel of a module, with the bytes of shared memory that it declares.
struct Function {
    Kernel* kernel;
    unsigned shared;
};

// A module is the text of its PTX, which tells its kernels; what runs is the processor's code of the same source.
struct Module {
    std::string ptx;
    // Those that were asked for.
    std::deque<Function> functions;
};

EXPORT int cuModuleLoadData(void** module, const void* image) {
    NEEDS_CONTEXT;
    std::string ptx = static_cast<const char*>(image);
    int result = compiled(ptx);
    if (result == SUCCESS) *module = new Module{ptx, {}};
    return result;
}
// The same with room for what the compiler says of a module that it refuses.
EXPORT int cuModuleLoadDataEx(void** module, const void* image, unsigned count, int* options, void** values) {
    int result = cuModuleLoadData(module, image);
    char* said = nullptr;
    size_t room = 0;
    for (unsigned i = 0; i < count; i++) {
        if (options[i] == JIT_ERROR_LOG) said = static_cast<char*>(values[i]);
        if (options[i] == JIT_ERROR_LOG_BYTES) room = static_cast<unsigned>(reinterpret_cast<uintptr_t>(values[i]));
    }
    if (result != SUCCESS && said != nullptr && room > 0) snprintf(said, room, "ptxas fatal   : Result %d of the fake compiler\n", result);
    return result;
}
EXPORT int cuModuleUnload(void* module) {
    delete static_cast<Module*>(module);
    return SUCCESS;
}

// Bytes of shared memory that the kernel of this entry declares: lines of PTX such as `.shared .align 4 .b8 name[1024];` or `.u32 name;`.
static unsigned shared_of(const std::string& ptx, size_t entry) {
    unsigned sum = 0, alignment, bits, count;
    size_t end = ptx.find(".entry ", entry + 1);
    for (size_t at = entry; (at = ptx.find("\t.shared ", at)) < end && at != std::string::npos; at++) {
        int found = sscanf(&ptx[at], " .shared .align %u .%*c%u %*[^[;][%u]", &alignment, &bits, &count);
        if (found >= 2) sum = (sum + alignment - 1) / alignment * alignment + bits / 8 * (found == 3 ? count : 1);
    }
    return sum;
}

EXPORT int cuModuleGetFunction(void** function, void* module, const char* name) {
    auto kernel = KERNELS.find(name);
    auto& [ptx, functions] = *static_cast<Module*>(module);
    size_t entry = ptx.find(".entry " + std::string(name) + "(");
    if (kernel == KERNELS.end() || entry == std::string::npos) return NOT_FOUND;
    functions.push_back({&kernel->second, shared_of(ptx, entry)});
    *function = &functions.back();
    return SUCCESS;
}

EXPORT int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                          unsigned shared, void* stream, void** arguments, void**) {
    NEEDS_CONTEXT;
    auto of = stream_of(stream);
    unsigned long long threads = 1ull * block_x * block_y * block_z;
    auto [kernel, declared] = *static_cast<Function*>(function);
    bool sizes = grid_x > 0 && grid_y > 0 && grid_z > 0 && grid_x <= MOST_BLOCKS && grid_y <= 65535 && grid_z <= 65535 && threads > 0 &&
                 threads <= shim::MOST_THREADS && block_z <= 64 && shared <= MOST_SHARED && declared <= MOST_SHARED - shared;
    if (!sizes || of == nullptr) return INVALID_VALUE;
    launches += 1;
    if (of->is_ahead) launches_ahead += 1;
    Bound bound = kernel->bind(arguments);
    if (!bound.is_aligned) {
        fprintf(stderr, "fake CUDA: kernel %s is given an address that is no multiple of its numbers' size\n", kernel->name.c_str());
        abort();
    }
    std::vector<char*> used;
    for (uint64_t address : bound.addresses) {
        // A part of a buffer may be empty.
        if (!is_allocated(address, 0)) {
            fprintf(stderr, "fake CUDA: kernel %s is given an address that is not of the GPU's memory\n", kernel->name.c_str());
            abort();
        }
        used.push_back(host(address));
    }
    enqueue(*of, used, [=, kernel = kernel, call = std::move(bound.call)] {
        // The processor's counterpart of a GPU runs one kernel at a time.
        static std::mutex& one_at_a_time = *new std::mutex;
        std::lock_guard<std::mutex> held(one_at_a_time);
        shim::threads_never_wait = INDEPENDENT.count(kernel->name.substr(0, kernel->name.rfind('_'))) != 0;
        shim::launch(kernel->name.c_str(), dim3(grid_x, grid_y, grid_z), dim3(block_x, block_y, block_z), shared, call);
    });
    return SUCCESS;
}
