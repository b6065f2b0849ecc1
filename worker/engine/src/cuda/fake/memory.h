// Memory of the fake driver: allocations with bounds, copies, and what streams still work in.
//
// Addresses of device memory have a bit set that no host address has: a program that follows one itself crashes, as on a GPU. Memory ends
// where its pages do, up to 16 bytes of alignment, and the page after it cannot be touched. It holds a NaN pattern at first.
#pragma once
#include "of_driver.h"
#include "streams.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <vector>

namespace {

constexpr uint64_t DEVICE_BIT = uint64_t{1} << 62;

char* host(uint64_t address) { return reinterpret_cast<char*>(address & ~DEVICE_BIT); }

struct Allocation {
    char* pages;
    size_t bytes;
};

// Of all below. What is here is never destroyed: streams may work until the process ends.
std::mutex& guard = *new std::mutex;
std::map<char*, Allocation>& allocations = *new std::map<char*, Allocation>;
// Pinned memory of the host, with its bytes.
std::map<char*, size_t>& pinned = *new std::map<char*, size_t>;
// Addresses at which work of streams begins that is not done yet.
std::multiset<char*>& in_use = *new std::multiset<char*>;
size_t allocated_bytes = 0, most_bytes = 0, most_ever = 0;
std::atomic<unsigned long long> bytes_to_host, bytes_to_device, copies_to_host, copies_to_device;

size_t aligned(size_t bytes) { return (bytes + 15) / 16 * 16; }
size_t paged(size_t bytes) { return (aligned(bytes) + 4095) / 4096 * 4096; }

unsigned long long memory_of_gpu() { return setting("FAKE_CUDA_MEMORY", 1ull << 30); }

int allocate(uint64_t* address, size_t bytes) {
    std::lock_guard<std::mutex> held(guard);
    if (bytes == 0) return INVALID_VALUE;
    if (allocated_bytes + bytes > memory_of_gpu()) return OUT_OF_MEMORY;
    size_t whole = paged(bytes);
    void* pages = mmap(nullptr, whole + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(static_cast<char*>(pages) + whole, 4096, PROT_NONE) != 0) return OUT_OF_MEMORY;
    char* start = static_cast<char*>(pages) + whole - aligned(bytes);
    memset(start, 0xff, aligned(bytes));
    allocations[start] = {static_cast<char*>(pages), bytes};
    allocated_bytes += bytes;
    most_bytes = std::max(most_bytes, allocated_bytes);
    most_ever = std::max(most_ever, allocated_bytes);
    *address = reinterpret_cast<uint64_t>(start) | DEVICE_BIT;
    return SUCCESS;
}

// The real driver may wait for streams that still work in memory that is freed, or not: a program that relies on it ends here.
void must_be_unused(const char* start, size_t bytes) {
    auto used = in_use.lower_bound(const_cast<char*>(start));
    if (used != in_use.end() && *used < start + bytes) {
        fprintf(stderr, "fake CUDA: memory is freed in which a stream still works\n");
        abort();
    }
}

// Takes an allocation from those that programs may use. Its pages are still there.
bool forget(uint64_t address, char** start, Allocation* allocation) {
    auto found = (address & DEVICE_BIT) != 0 ? allocations.find(host(address)) : allocations.end();
    if (found == allocations.end()) return false;
    *start = found->first;
    *allocation = found->second;
    allocated_bytes -= found->second.bytes;
    allocations.erase(found);
    return true;
}

void unmap(const char* start, Allocation allocation) {
    must_be_unused(start, allocation.bytes);
    munmap(allocation.pages, paged(allocation.bytes) + 4096);
}

// Whether so many bytes from here on lie within one allocation.
bool is_allocated(uint64_t address, size_t bytes) {
    std::lock_guard<std::mutex> held(guard);
    if ((address & DEVICE_BIT) == 0) return false;
    char* start = host(address);
    auto after = allocations.upper_bound(start);
    if (after == allocations.begin()) return false;
    auto& [first, of] = *std::prev(after);
    return start + bytes <= first + of.bytes;
}

bool is_pinned(const void* memory) {
    std::lock_guard<std::mutex> held(guard);
    auto start = static_cast<char*>(const_cast<void*>(memory));
    auto after = pinned.upper_bound(start);
    return after != pinned.begin() && start < std::prev(after)->first + std::prev(after)->second;
}

// Has a stream do some work at these addresses.
void enqueue(Stream& stream, std::vector<char*> addresses, std::function<void()> work) {
    {
        std::lock_guard<std::mutex> held(guard);
        in_use.insert(addresses.begin(), addresses.end());
    }
    stream.add([addresses, work] {
        work();
        std::lock_guard<std::mutex> held(guard);
        for (char* address : addresses) in_use.erase(in_use.find(address));
    });
}

// Copies of a stream. As with a GPU, only pinned memory of the host is read and written while the call's caller goes on.
int to_device(uint64_t to, const void* from, size_t bytes, void* stream) {
    NEEDS_CONTEXT;
    auto of = stream_of(stream);
    if (!is_allocated(to, bytes) || of == nullptr) return INVALID_VALUE;
    bytes_to_device += bytes;
    copies_to_device += 1;
    char* there = host(to);
    if (is_pinned(from)) {
        enqueue(*of, {there, static_cast<char*>(const_cast<void*>(from))}, [=] { memcpy(there, from, bytes); });
    } else {
        auto start = static_cast<const char*>(from);
        auto copy = std::make_shared<std::vector<char>>(start, start + bytes);
        enqueue(*of, {there}, [=] { memcpy(there, copy->data(), bytes); });
    }
    return SUCCESS;
}

int to_host(void* to, uint64_t from, size_t bytes, void* stream) {
    NEEDS_CONTEXT;
    auto of = stream_of(stream);
    if (!is_allocated(from, bytes) || of == nullptr) return INVALID_VALUE;
    bytes_to_host += bytes;
    copies_to_host += 1;
    char* there = host(from);
    enqueue(*of, {there, static_cast<char*>(to)}, [=] { memcpy(to, there, bytes); });
    if (!is_pinned(to)) of->wait();
    return SUCCESS;
}

} // namespace

// What tests ask of the library itself.
EXPORT unsigned long long fake_cuda_bytes_to_host() { return bytes_to_host; }
EXPORT unsigned long long fake_cuda_bytes_to_device() { return bytes_to_device; }
EXPORT unsigned long long fake_cuda_copies_to_host() { return copies_to_host; }
EXPORT unsigned long long fake_cuda_copies_to_device() { return copies_to_device; }
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

// For the other fake libraries.
EXPORT void* fake_cuda_host(const void* address) { return host(reinterpret_cast<uint64_t>(address)); }
EXPORT bool fake_cuda_holds(const void* address, size_t bytes) { return is_allocated(reinterpret_cast<uint64_t>(address), bytes); }
EXPORT bool fake_cuda_enqueue(void* stream, const std::vector<const void*>& addresses, const std::function<void()>& work) {
    auto of = stream_of(stream);
    if (of == nullptr) return false;
    std::vector<char*> used;
    for (const void* address : addresses) used.push_back(host(reinterpret_cast<uint64_t>(address)));
    enqueue(*of, used, work);
    return true;
}
EXPORT void fake_cuda_use(const void* address) {
    std::lock_guard<std::mutex> held(guard);
    in_use.insert(host(reinterpret_cast<uint64_t>(address)));
}
EXPORT void fake_cuda_leave(const void* address) {
    std::lock_guard<std::mutex> held(guard);
    in_use.erase(in_use.find(host(reinterpret_cast<uint64_t>(address))));
}

EXPORT unsigned long long fake_cuda_allocated_bytes() {
    std::lock_guard<std::mutex> held(guard);
    return allocated_bytes;
}

EXPORT int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    NEEDS_CONTEXT;
    std::lock_guard<std::mutex> held(guard);
    *total = memory_of_gpu();
    *free_bytes = *total - allocated_bytes;
    return SUCCESS;
}

// The pool of memory that asynchronous allocations come from. It keeps nothing that was freed.
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
// The most that was in use can be set to 0 alone: it is counted from now on.
EXPORT int cuMemPoolSetAttribute(void* pool, int attribute, void* value) {
    std::lock_guard<std::mutex> held(guard);
    if (pool != &default_pool || value == nullptr) return INVALID_VALUE;
    switch (attribute) {
        case POOL_THRESHOLD: return SUCCESS;
        case POOL_MOST_USED:
            if (*static_cast<unsigned long long*>(value) != 0) return INVALID_VALUE;
            most_ever = allocated_bytes;
            return SUCCESS;
        default: return INVALID_VALUE;
    }
}

EXPORT int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    NEEDS_CONTEXT;
    return allocate(address, bytes);
}
EXPORT int cuMemAllocAsync(uint64_t* address, size_t bytes, void* stream) {
    return stream_of(stream) == nullptr ? INVALID_VALUE : allocate(address, bytes);
}
EXPORT int cuMemFree_v2(uint64_t address) {
    NEEDS_CONTEXT;
    std::lock_guard<std::mutex> held(guard);
    char* start;
    Allocation allocation;
    if (!forget(address, &start, &allocation)) return INVALID_VALUE;
    unmap(start, allocation);
    return SUCCESS;
}
// The memory goes once the stream comes to it; from now on nobody may use it.
EXPORT int cuMemFreeAsync(uint64_t address, void* stream) {
    auto of = stream_of(stream);
    if (of == nullptr) return INVALID_VALUE;
    char* start;
    Allocation allocation;
    {
        std::lock_guard<std::mutex> held(guard);
        if (!forget(address, &start, &allocation)) return INVALID_VALUE;
    }
    of->add([=] {
        std::lock_guard<std::mutex> held(guard);
        unmap(start, allocation);
    });
    return SUCCESS;
}
EXPORT int cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    NEEDS_CONTEXT;
    *memory = malloc(bytes);
    if (*memory == nullptr) return OUT_OF_MEMORY;
    memset(*memory, 0xa5, bytes);
    std::lock_guard<std::mutex> held(guard);
    pinned[static_cast<char*>(*memory)] = bytes;
    return SUCCESS;
}
EXPORT int cuMemFreeHost(void* memory) {
    NEEDS_CONTEXT;
    std::lock_guard<std::mutex> held(guard);
    auto found = pinned.find(static_cast<char*>(memory));
    if (found == pinned.end()) return INVALID_VALUE;
    must_be_unused(found->first, found->second);
    pinned.erase(found);
    free(memory);
    return SUCCESS;
}

EXPORT int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) { return to_device(to, from, bytes, stream); }
EXPORT int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) { return to_host(to, from, bytes, stream); }
EXPORT int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    NEEDS_CONTEXT;
    auto of = stream_of(stream);
    if (!is_allocated(to, bytes) || !is_allocated(from, bytes) || of == nullptr) return INVALID_VALUE;
    enqueue(*of, {host(to), host(from)}, [=] { memmove(host(to), host(from), bytes); });
    return SUCCESS;
}
EXPORT int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
    NEEDS_CONTEXT;
    auto of = stream_of(stream);
    if (!is_allocated(to, bytes) || of == nullptr) return INVALID_VALUE;
    enqueue(*of, {host(to)}, [=] { memset(host(to), value, bytes); });
    return SUCCESS;
}
