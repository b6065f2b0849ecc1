// A stream of a fake CUDA driver: a thread that runs what it is given, in order.

#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

namespace {

class Stream {
public:
    Stream() : thread_([this] { run(); }) {}

    ~Stream() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            closed_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }

    void add(std::function<void()> work) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            work_.push_back(std::move(work));
        }
        changed_.notify_all();
    }

    // Waits until all work is done.
    void wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return work_.empty() && !running_; });
    }

private:
    // Runs all work, including what is left when the stream is closed.
    void run() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            changed_.wait(lock, [this] { return closed_ || !work_.empty(); });
            if (work_.empty()) {
                return;
            }
            auto work = std::move(work_.front());
            work_.pop_front();
            running_ = true;
            lock.unlock();
            work();
            lock.lock();
            running_ = false;
            changed_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::function<void()>> work_;
    bool running_ = false;
    bool closed_ = false;
    // The last member: the thread uses all others.
    std::thread thread_;
};

} // namespace
