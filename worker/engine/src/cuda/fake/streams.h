// Streams and events of the fake driver, which includes this file once it has its results and EXPORT.
//
// A stream is a thread that runs what it is given in order. It works as late as it may: when somebody waits for some of its work or asks how far
// that is, when it is given a function of the host's, or when much is waiting; and then only what it was given until then. So a program that does not wait for a result, or that frees memory too early,
// is likelier to fail than on a GPU, and fails in the same way in each run. With FAKE_CUDA_SIDES_FIRST all but the first stream of a process
// begin at once instead: then those fail that do not wait for the first one.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace {

// Work that a stream keeps waiting at most: memory of the host that it holds must not grow without end.
constexpr size_t MOST_WAITING = 256;

// Lower numbers go ahead. Streams without one have 0.
constexpr int FIRST_PRIORITY = -5;

class Stream {
public:
    std::atomic<bool> is_ahead{false};

    explicit Stream(bool at_once) : at_once_(at_once), thread_([this] { run(); }) {}

    ~Stream() {
        {
            std::lock_guard<std::mutex> held(mutex_);
            closed_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }

    // Gives it some work, and says how much it was given so far.
    size_t add(std::function<void()> work) {
        std::lock_guard<std::mutex> held(mutex_);
        work_.push_back(std::move(work));
        given_ += 1;
        if (at_once_ || work_.size() >= MOST_WAITING) begin_held(given_);
        return given_;
    }

    // Has it do what it was given so far.
    void begin() {
        std::lock_guard<std::mutex> held(mutex_);
        begin_held(given_);
    }

    // Has it do the first so many pieces of its work.
    void begin_first(size_t count) {
        std::lock_guard<std::mutex> held(mutex_);
        begin_held(count);
    }

    // Waits until all work is done.
    void wait() {
        std::unique_lock<std::mutex> held(mutex_);
        changed_.wait(held, [this] {
            // Others may give it more meanwhile.
            begin_held(given_);
            return work_.empty() && !running_;
        });
    }

    bool is_idle() {
        std::lock_guard<std::mutex> held(mutex_);
        begin_held(given_);
        return work_.empty() && !running_;
    }

private:
    void begin_held(size_t count) {
        if (count <= begun_) return;
        begun_ = count;
        changed_.notify_all();
    }

    // Runs all work, including what is left when the stream is closed.
    void run() {
        std::unique_lock<std::mutex> held(mutex_);
        for (;;) {
            changed_.wait(held, [this] { return closed_ || taken_ < begun_; });
            if (work_.empty()) return;
            auto work = std::move(work_.front());
            work_.pop_front();
            taken_ += 1;
            running_ = true;
            held.unlock();
            work();
            // What it keeps goes before others learn that it is done.
            work = nullptr;
            held.lock();
            running_ = false;
            changed_.notify_all();
        }
    }

    const bool at_once_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::function<void()>> work_;
    // Pieces of work that it was ever given, that it is to do, and that it has begun.
    size_t given_ = 0, begun_ = 0, taken_ = 0;
    bool running_ = false;
    bool closed_ = false;
    // The last member: the thread uses all others.
    std::thread thread_;
};

// Those that there are. Never destroyed: streams may work until the process ends.
std::mutex& streams_guard = *new std::mutex;
std::map<void*, std::shared_ptr<Stream>>& streams = *new std::map<void*, std::shared_ptr<Stream>>;

// A context is the address of one of these.
char contexts[64];
thread_local void* current_context = nullptr;

// Where in a stream's work an event was recorded last; shared with streams, as an event may be recorded again, or destroyed, before they
// reach it.
struct Mark {
    std::weak_ptr<Stream> stream;
    // What is to be done until then, once it is known.
    std::atomic<size_t> pieces{0};
    // When it was, once it is.
    std::chrono::steady_clock::time_point time;
    std::atomic<bool> reached{false};

    void reach() {
        time = std::chrono::steady_clock::now();
        reached = true;
    }

    bool is_reached() {
        if (reached) return true;
        if (auto of = stream.lock()) of->begin_first(pieces);
        return reached;
    }

    void wait() {
        while (!is_reached()) std::this_thread::yield();
    }
};

// One that was never recorded has nothing to wait for.
struct Event {
    bool keeps_time;
    std::shared_ptr<Mark> mark;
};

std::shared_ptr<Stream> stream_of(void* stream) {
    std::lock_guard<std::mutex> held(streams_guard);
    auto found = streams.find(stream);
    return found == streams.end() ? nullptr : found->second;
}

} // namespace

#define NEEDS_CONTEXT                                     \
    do {                                                  \
        if (current_context == nullptr) return NO_CONTEXT; \
    } while (false)

EXPORT int cuStreamCreate(void** stream, unsigned) {
    NEEDS_CONTEXT;
    static std::atomic<bool> is_first{true};
    bool side = !is_first.exchange(false);
    auto made = std::make_shared<Stream>(side && setting("FAKE_CUDA_SIDES_FIRST", 0) != 0);
    *stream = made.get();
    std::lock_guard<std::mutex> held(streams_guard);
    streams[made.get()] = made;
    return SUCCESS;
}
// Only whether a stream goes ahead of others is kept, so that launches there are counted.
EXPORT int cuCtxGetStreamPriorityRange(int* last, int* first) {
    NEEDS_CONTEXT;
    *last = 0;
    *first = FIRST_PRIORITY;
    return SUCCESS;
}
EXPORT int cuStreamCreateWithPriority(void** stream, unsigned flags, int priority) {
    int result = cuStreamCreate(stream, flags);
    if (result == SUCCESS) static_cast<Stream*>(*stream)->is_ahead = priority == FIRST_PRIORITY;
    return result;
}
// Waits for all work, where the real driver would go on.
EXPORT int cuStreamDestroy_v2(void* stream) {
    NEEDS_CONTEXT;
    auto of = stream_of(stream);
    std::lock_guard<std::mutex> held(streams_guard);
    return streams.erase(stream) == 1 ? SUCCESS : INVALID_VALUE;
}
EXPORT int cuCtxSynchronize() {
    NEEDS_CONTEXT;
    std::vector<std::shared_ptr<Stream>> all;
    {
        std::lock_guard<std::mutex> held(streams_guard);
        for (auto& [_, stream] : streams) all.push_back(stream);
    }
    for (auto& stream : all) stream->wait();
    return SUCCESS;
}
EXPORT int cuStreamSynchronize(void* stream) {
    NEEDS_CONTEXT;
    auto of = stream_of(stream);
    if (of == nullptr) return INVALID_VALUE;
    of->wait();
    return SUCCESS;
}
EXPORT int cuStreamQuery(void* stream) {
    auto of = stream_of(stream);
    if (of == nullptr) return INVALID_VALUE;
    return of->is_idle() ? SUCCESS : NOT_READY;
}
// The function may wait for other processes, whose streams wait for this one: it is not kept waiting.
EXPORT int cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
    NEEDS_CONTEXT;
    auto of = stream_of(stream);
    if (of == nullptr) return INVALID_VALUE;
    of->add([function, data] { function(data); });
    of->begin();
    return SUCCESS;
}

EXPORT int cuEventCreate(void** event, unsigned flags) {
    NEEDS_CONTEXT;
    *event = new Event{(flags & EVENT_WITHOUT_TIME) == 0, nullptr};
    return SUCCESS;
}
EXPORT int cuEventDestroy_v2(void* event) {
    NEEDS_CONTEXT;
    delete static_cast<Event*>(event);
    return SUCCESS;
}
EXPORT int cuEventRecord(void* event, void* stream) {
    NEEDS_CONTEXT;
    auto of = stream_of(stream);
    if (of == nullptr) return INVALID_VALUE;
    auto mark = std::make_shared<Mark>();
    mark->stream = of;
    static_cast<Event*>(event)->mark = mark;
    mark->pieces = of->add([mark] { mark->reach(); });
    return SUCCESS;
}
EXPORT int cuEventQuery(void* event) {
    auto mark = static_cast<Event*>(event)->mark;
    return mark == nullptr || mark->is_reached() ? SUCCESS : NOT_READY;
}
EXPORT int cuEventSynchronize(void* event) {
    if (auto mark = static_cast<Event*>(event)->mark) mark->wait();
    return SUCCESS;
}
EXPORT int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    NEEDS_CONTEXT;
    auto of = stream_of(stream);
    if (of == nullptr) return INVALID_VALUE;
    if (auto mark = static_cast<Event*>(event)->mark) of->add([mark] { mark->wait(); });
    return SUCCESS;
}
EXPORT int cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
    auto from = static_cast<Event*>(start)->mark, to = static_cast<Event*>(end)->mark;
    bool keep_time = static_cast<Event*>(start)->keeps_time && static_cast<Event*>(end)->keeps_time;
    if (from == nullptr || to == nullptr || !keep_time) return INVALID_HANDLE;
    if (!from->is_reached() || !to->is_reached()) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(to->time - from->time).count();
    return SUCCESS;
}
