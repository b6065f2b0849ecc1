// What the fake driver does for the other fake libraries.
#pragma once
#include <cstddef>
#include <functional>
#include <vector>

extern "C" {
// Whether device memory holds so many bytes from an address on.
bool fake_cuda_holds(const void* address, size_t bytes);
// Where it lies in this process.
void* fake_cuda_host(const void* address);
// Has a stream do some work in memory that begins at these addresses of the device. False where there is no such stream.
bool fake_cuda_enqueue(void* stream, const std::vector<const void*>& addresses, const std::function<void()>& work);
// Work begins, and ends, in memory that begins at this address of the device: until then it must not be freed.
void fake_cuda_use(const void* address);
void fake_cuda_leave(const void* address);
// Whether the calling thread has a current context, as libraries expect of who calls them.
bool fake_cuda_has_current_context();
// Bytes of all GPUs that are allocated or kept for allocations, and whether a context of one was ever taken.
unsigned long long fake_cuda_bytes_in_use();
bool fake_cuda_has_context();
}
