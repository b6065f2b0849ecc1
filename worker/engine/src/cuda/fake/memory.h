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
    // Whether it comes from the pool.
    bool pooled;
};

// Of all below. What is here is never destroyed: streams may work until the process ends.
std::mutex& guard = *new std::mutex;
std::map<char*, Allocation>& allocations = *new std::map<char*, Allocation>;
// Pinned memory of the host, with its bytes.
std::map<char*, size_t>& pinned = *new std::map<char*, size_t>;
// Addresses at which work of streams begins that is not done yet.
std::multiset<char*>& in_use = *new std::multiset<char*>;
size_t allocated_bytes = 0, most_bytes = 0;
// The pool of memory that asynchronous allocations come from: what of it is in use, what was at most, and what it holds with what was freed and
// is kept for the next ones, which other allocations do not get. It is never in pieces: drivers put those together.
size_t pool_used = 0, pool_most_used = 0, pool_reserved = 0;
unsigned long long pool_threshold = 0;
std::atomic<unsigned long long> bytes_to_host, bytes_to_device, copies_to_host, copies_to_device;

size_t aligned(size_t bytes) { return (bytes + 15) / 16 * 16; }
size_t paged(size_t bytes) { return (aligned(bytes) + 4095) / 4096 * 4096; }

unsigned long long memory_of_gpu() { return setting("FAKE_CUDA_MEMORY", 1ull << 30); }

// Bytes that are neither allocated nor kept for others. The lock is held.
size_t free_bytes() { return memory_of_gpu() - (allocated_bytes - pool_used) - pool_reserved; }

// The pool keeps no more than its threshold of what is not in use. The lock is held.
void shrink_pool(unsigned long long kept) {
    if (pool_reserved > kept) pool_reserved = std::max<size_t>(pool_used, kept);
}

int allocate(uint64_t* address, size_t bytes, bool pooled) {
    std::lock_guard<std::mutex> held(guard);
    if (bytes == 0) return INVALID_VALUE;
    size_t taken = pooled ? std::max(pool_reserved, pool_used + bytes) - pool_reserved : bytes;
    if (taken > free_bytes()) return OUT_OF_MEMORY;
    size_t whole = paged(bytes);
    void* pages = mmap(nullptr, whole + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(static_cast<char*>(pages) + whole, 4096, PROT_NONE) != 0) return OUT_OF_MEMORY;
    char* start = static_cast<char*>(pages) + whole - aligned(bytes);
    memset(start, 0xff, aligned(bytes));
    allocations[start] = {static_cast<char*>(pages), bytes, pooled};
    allocated_bytes += bytes;
    most_bytes = std::max(most_bytes, allocated_bytes);
    if (pooled) {
        pool_used += bytes;
        pool_reserved += taken;
        pool_most_used = std::max(pool_most_used, pool_used);
    }
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
    allocated_bytes -= allocation->bytes;
    if (allocation->pooled) {
        pool_used -= allocation->bytes;
        shrink_pool(pool_threshold);
    }
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

// Copies of a stream. It reads and writes the host's memory when it comes to them, also such as is not pinned: with that a driver may be done
// when the call returns, or not.
int to_device(uint64_t to, const void* from, size_t bytes, void* stream) {
    NEEDS_CONTEXT;
    auto of = stream_of(stream);
    if (!is_allocated(to, bytes) || of == nullptr) return INVALID_VALUE;
    bytes_to_device += bytes;
    copies_to_device += 1;
    char* there = host(to);
    enqueue(*of, {there, static_cast<char*>(const_cast<void*>(from))}, [=] { memcpy(there, from, bytes); });
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
EXPORT bool fake_cuda_has_current_context() { return current_context != nullptr; }
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

EXPORT unsigned long long fake_cuda_bytes_in_use() {
    std::lock_guard<std::mutex> held(guard);
    return memory_of_gpu() - free_bytes();
}

EXPORT int cuMemGetInfo_v2(size_t* free, size_t* total) {
    NEEDS_CONTEXT;
    std::lock_guard<std::mutex> held(guard);
    *total = memory_of_gpu();
    *free = free_bytes();
    return SUCCESS;
}

static char default_pool;
EXPORT int cuDeviceGetDefaultMemPool(void** pool, int) {
    NEEDS_START;
    *pool = &default_pool;
    return SUCCESS;
}
EXPORT int cuMemPoolGetAttribute(void* pool, int attribute, void* value) {
    std::lock_guard<std::mutex> held(guard);
    if (pool != &default_pool) return INVALID_VALUE;
    switch (attribute) {
        case POOL_RESERVED: *static_cast<unsigned long long*>(value) = pool_reserved; return SUCCESS;
        case POOL_USED: *static_cast<unsigned long long*>(value) = pool_used; return SUCCESS;
        case POOL_MOST_USED: *static_cast<unsigned long long*>(value) = pool_most_used; return SUCCESS;
        default: return INVALID_VALUE;
    }
}
EXPORT int cuMemPoolTrimTo(void* pool, size_t kept) {
    std::lock_guard<std::mutex> held(guard);
    if (pool != &default_pool) return INVALID_VALUE;
    shrink_pool(kept);
    return SUCCESS;
}
// The most that was in use can be set to 0 alone: it is counted from now on.
EXPORT int cuMemPoolSetAttribute(void* pool, int attribute, void* value) {
    std::lock_guard<std::mutex> held(guard);
    if (pool != &default_pool || value == nullptr) return INVALID_VALUE;
    switch (attribute) {
        case POOL_THRESHOLD: pool_threshold = *static_cast<unsigned long long*>(value); return SUCCESS;
        case POOL_MOST_USED:
            if (*static_cast<unsigned long long*>(value) != 0) return INVALID_VALUE;
            pool_most_used = pool_used;
            return SUCCESS;
        default: return INVALID_VALUE;
    }
}

EXPORT int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    NEEDS_CONTEXT;
    return allocate(address, bytes, false);
}
EXPORT int cuMemAllocAsync(uint64_t* address, size_t bytes, void* stream) {
    return stream_of(stream) == nullptr ? INVALID_VALUE : allocate(address, bytes, true);
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
