// What puts the calls of a fake NCCL's group together, and what is said to it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <string>
#include <vector>

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace {

enum Type { INT64 = 4, UINT64 = 5, FLOAT32 = 7 };
enum What : uint64_t { ALL_REDUCE = 1, REDUCE, BROADCAST, ALL_GATHER, GOODBYE };

// What a rank says before the bytes of its part.
struct Header {
    uint64_t what;
    uint64_t type;
    uint64_t root;
    uint64_t bytes;
};

struct Greeting {
    uint64_t rank;
    uint64_t world;
};

bool send_all(int socket, const void *from, size_t bytes) {
    auto *next = static_cast<const char *>(from);
    while (bytes > 0) {
        ssize_t sent = ::send(socket, next, bytes, MSG_NOSIGNAL);
        if (sent <= 0) {
            return false;
        }
        next += sent;
        bytes -= static_cast<size_t>(sent);
    }
    return true;
}

bool receive_all(int socket, void *into, size_t bytes) {
    auto *next = static_cast<char *>(into);
    while (bytes > 0) {
        ssize_t received = ::recv(socket, next, bytes, 0);
        if (received <= 0) {
            return false;
        }
        next += received;
        bytes -= static_cast<size_t>(received);
    }
    return true;
}

// An abstract socket address: no file is left behind.
socklen_t address_of(const std::string &name, sockaddr_un &address) {
    address = {};
    address.sun_family = AF_UNIX;
    size_t length = name.copy(address.sun_path + 1, sizeof address.sun_path - 1);
    return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
}

template <typename T> void add(std::vector<char> &sum, const std::vector<char> &part) {
    auto *to = reinterpret_cast<T *>(sum.data());
    auto *from = reinterpret_cast<const T *>(part.data());
    for (size_t i = 0; i < sum.size() / sizeof(T); ++i) {
        to[i] += from[i];
    }
}

// What a rank has brought to the open call.
struct Part {
    int socket = -1;
    bool gone = false;
    bool brought = false;
    Header header{};
    std::vector<char> bytes;
};

// Puts the calls of a group together until a rank's connection ends.
class Hub {
public:
    explicit Hub(int listener) : listener_(listener) {}

    void run() {
        if (meet()) {
            while (round()) {
            }
        }
        for (auto &part : parts_) {
            if (part.socket >= 0) {
                ::shutdown(part.socket, SHUT_RDWR);
                ::close(part.socket);
            }
        }
        ::close(listener_);
    }

private:
    // Waits for all ranks; a rank that leaves before ends the group.
    bool meet() {
        size_t joined = 0;
        while (parts_.empty() || joined < parts_.size()) {
            std::vector<pollfd> waiting{{listener_, POLLIN, 0}};
            for (auto &part : parts_) {
                if (part.socket >= 0) {
                    waiting.push_back({part.socket, POLLIN, 0});
                }
            }
            ::poll(waiting.data(), waiting.size(), -1);
            for (size_t i = 1; i < waiting.size(); ++i) {
                if (waiting[i].revents != 0) {
                    return false;
                }
            }
            int socket = ::accept(listener_, nullptr, nullptr);
            Greeting greeting;
            if (socket < 0 || !receive_all(socket, &greeting, sizeof greeting)) {
                return false;
            }
            parts_.resize(greeting.world);
            parts_[greeting.rank].socket = socket;
            ++joined;
        }
        char ready = 1;
        for (auto &part : parts_) {
            send_all(part.socket, &ready, 1);
        }
        return true;
    }

    bool round() {
        for (auto &part : parts_) {
            part.brought = false;
        }
        for (;;) {
            std::vector<pollfd> waiting;
            std::vector<Part *> from;
            bool complete = true;
            for (auto &part : parts_) {
                complete = complete && part.brought;
                if (!part.gone) {
                    // A rank that does not wait for the result may have sent its next part: that is for later.
                    short events = part.brought ? POLLRDHUP : POLLIN;
                    waiting.push_back({part.socket, events, 0});
                    from.push_back(&part);
                }
            }
            if (complete) {
                return answer();
            }
            if (waiting.empty()) {
                return false;
            }
            ::poll(waiting.data(), waiting.size(), -1);
            for (size_t i = 0; i < waiting.size(); ++i) {
                if (waiting[i].revents != 0 && !take(*from[i])) {
                    return false;
                }
            }
        }
    }

    bool take(Part &part) {
        Header next;
        if (part.brought) {
            // Its connection has ended: well, if what it said last is a goodbye.
            ssize_t there = ::recv(part.socket, &next, sizeof next, MSG_PEEK);
            part.gone = there == sizeof next && next.what == GOODBYE;
            return part.gone;
        }
        if (!receive_all(part.socket, &next, sizeof next)) {
            return false;
        }
        part.header = next;
        if (part.header.what == GOODBYE) {
            part.gone = true;
            return true;
        }
        part.bytes.resize(part.header.bytes);
        part.brought = receive_all(part.socket, part.bytes.data(), part.bytes.size());
        return part.brought;
    }

    bool answer() {
        const Header call = parts_[0].header;
        for (auto &part : parts_) {
            // The real library would hang or write past its memory.
            if (std::memcmp(&part.header, &call, sizeof call) != 0) {
                std::fprintf(stderr, "fake NCCL: ranks make different calls\n");
                std::abort();
            }
        }
        std::vector<char> result = parts_[0].bytes;
        for (size_t rank = 1; rank < parts_.size(); ++rank) {
            if (call.what == ALL_GATHER) {
                result.insert(result.end(), parts_[rank].bytes.begin(), parts_[rank].bytes.end());
            } else if (call.what == BROADCAST) {
                result = parts_[call.root].bytes;
            } else if (call.type == INT64) {
                add<uint64_t>(result, parts_[rank].bytes);
            } else {
                add<float>(result, parts_[rank].bytes);
            }
        }
        for (size_t rank = 0; rank < parts_.size(); ++rank) {
            // Who is gone meanwhile is found in the next round.
            if (call.what != REDUCE || rank == call.root) {
                send_all(parts_[rank].socket, result.data(), result.size());
            }
        }
        return true;
    }

    int listener_;
    std::vector<Part> parts_;
};

} // namespace
