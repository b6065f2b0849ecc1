// Streams and events of the fake driver, which includes this file once it has its results and EXPORT.
#pragma once
#include "../../../../src/collective/nccl/fake/stream.h"

#include <atomic>
#include <memory>

// Work runs at once, until a function of the host's is launched, which may wait for other processes: from then on a thread runs all that comes.
namespace {
struct FakeStream {
    std::unique_ptr<Stream> queue;
};
} // namespace
static void in_order(void* stream, std::function<void()> work) {
    auto* of = static_cast<FakeStream*>(stream);
    if (of != nullptr && of->queue) {
        of->queue->add(std::move(work));
    } else {
        work();
    }
}
EXPORT int cuStreamCreate(void** stream, unsigned) {
    *stream = new FakeStream;
    return SUCCESS;
}
EXPORT int cuStreamCreateWithPriority(void** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
EXPORT int cuStreamDestroy_v2(void* stream) {
    delete static_cast<FakeStream*>(stream);
    return SUCCESS;
}
EXPORT int cuStreamSynchronize(void* stream) {
    auto* of = static_cast<FakeStream*>(stream);
    if (of != nullptr && of->queue) of->queue->wait();
    return SUCCESS;
}
EXPORT int cuStreamQuery(void*) { return SUCCESS; }
EXPORT int cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
    auto* of = static_cast<FakeStream*>(stream);
    if (of == nullptr) return INVALID_VALUE;
    if (!of->queue) of->queue = std::make_unique<Stream>();
    of->queue->add([function, data] { function(data); });
    return SUCCESS;
}
EXPORT int cuStreamWaitEvent(void*, void*, unsigned) { return SUCCESS; }

// Records that are not reached yet; shared with the stream, as an event may be destroyed before.
struct FakeEvent {
    std::shared_ptr<std::atomic<int>> pending = std::make_shared<std::atomic<int>>(0);
};
EXPORT int cuEventCreate(void** event, unsigned) {
    *event = new FakeEvent;
    return SUCCESS;
}
EXPORT int cuEventDestroy_v2(void* event) {
    delete static_cast<FakeEvent*>(event);
    return SUCCESS;
}
EXPORT int cuEventRecord(void* event, void* stream) {
    auto pending = static_cast<FakeEvent*>(event)->pending;
    ++*pending;
    in_order(stream, [pending] { --*pending; });
    return SUCCESS;
}
EXPORT int cuEventQuery(void* event) { return *static_cast<FakeEvent*>(event)->pending == 0 ? SUCCESS : NOT_READY; }
EXPORT int cuEventSynchronize(void* event) {
    while (cuEventQuery(event) != SUCCESS) std::this_thread::yield();
    return SUCCESS;
}
EXPORT int cuEventElapsedTime_v2(float* milliseconds, void*, void*) {
    *milliseconds = 0.0f;
    return SUCCESS;
}
