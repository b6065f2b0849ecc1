// A libnccl whose ranks are processes or threads of one machine and whose memory is the fake driver's.
//
// The unique id is the name of a Unix socket. Its maker runs a hub there: each rank brings its part of a call, the hub puts the result
// together in the order of ranks and sends it back. A connection that ends without a goodbye ends the group, as a peer's death does.
//
// Faults, by environment variables (FAKE_NCCL_RANK: at this rank alone, else at all):
//   FAKE_NCCL_INIT=never          a communicator is never ready
//   FAKE_NCCL_ERROR_AT_CALL=K     the K-th call of the process ends in an asynchronous error
//   FAKE_NCCL_SILENT_AT_CALL=K    the K-th call never ends
//   FAKE_NCCL_DIE_AT_CALL=K       the process is killed within the K-th call
//   FAKE_NCCL_ABORT=hang          ncclCommAbort never returns
//   FAKE_NCCL_REVOKE=hang         ncclCommRevoke never returns
//   FAKE_NCCL_VERSION=N           it says that it is of this version
// Compiled with WITHOUT_REVOKE it lacks ncclCommRevoke, as libraries before 2.28 do.

#include <climits>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>

#include "../../../../engine/src/cuda/fake/of_driver.h"
#include "hub.h"

extern "C" int cuLaunchHostFunc(void *stream, void (*function)(void *), void *data);

namespace {

enum Result { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7 };

std::string fault(const char *name) {
    const char *value = std::getenv(name);
    return value == nullptr ? "" : value;
}

bool fault_at(const char *name, int rank) {
    std::string only = fault("FAKE_NCCL_RANK");
    return !fault(name).empty() && (only.empty() || only == std::to_string(rank));
}

// Never returns. The process ends around it.
[[noreturn]] void hang() {
    for (;;) {
        ::pause();
    }
}

// Calls of this process, over all communicators.
std::atomic<uint64_t> calls{0};

struct Comm {
    int rank = 0;
    int world = 0;
    int socket = -1;
    std::string name;
    std::atomic<int> state{IN_PROGRESS};
    // What it was asked for last goes on until somebody has asked how far it is.
    std::atomic<bool> unasked{false};
    std::atomic<bool> finalized{false};
    std::atomic<bool> stopped{false};
    std::mutex mutex;
    std::condition_variable changed;
    int running = 0;

    // Whether it may be asked for more: it is not while it is still busy with what it was asked for last.
    bool is_ready() const { return state == SUCCESS && !unasked && !stopped && !finalized; }

    // Ends what runs, and waits for its end.
    void stop() {
        stopped = true;
        ::shutdown(socket, SHUT_RDWR);
        std::unique_lock<std::mutex> lock(mutex);
        changed.notify_all();
        changed.wait(lock, [this] { return running == 0; });
    }

    void begin() {
        std::lock_guard<std::mutex> lock(mutex);
        ++running;
    }

    void end() {
        std::lock_guard<std::mutex> lock(mutex);
        --running;
        changed.notify_all();
    }

    void fail(int error) {
        if (!stopped) {
            state = error;
        }
        // A kernel waits on until it is told to stop.
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [this] { return stopped.load(); });
    }
};

void connect_ranks(Comm *comm) {
    sockaddr_un address;
    socklen_t length = address_of(comm->name, address);
    Greeting greeting{static_cast<uint64_t>(comm->rank), static_cast<uint64_t>(comm->world)};
    char ready = 0;
    bool never = fault_at("FAKE_NCCL_INIT", comm->rank);
    if (::connect(comm->socket, reinterpret_cast<sockaddr *>(&address), length) != 0 ||
        !send_all(comm->socket, &greeting, sizeof greeting) || !receive_all(comm->socket, &ready, 1)) {
        if (!comm->stopped) {
            comm->state = REMOTE_ERROR;
        }
    } else if (!never) {
        comm->state = SUCCESS;
    }
    comm->end();
}

struct Work {
    Comm *comm;
    Header header;
    // Where the part to send lies on the GPU.
    const void *sent;
    // Where is received there, and how much.
    void *memory;
    size_t received;
    uint64_t number;

    void use() const {
        fake_cuda_use(sent);
        fake_cuda_use(memory);
    }

    void leave() const {
        fake_cuda_leave(sent);
        fake_cuda_leave(memory);
    }
};

bool faulty(const Work &work, const char *name) {
    return fault_at(name, work.comm->rank) && fault(name) == std::to_string(work.number);
}

// What a stream runs for a call.
void perform(void *data) {
    std::unique_ptr<Work> work(static_cast<Work *>(data));
    Comm *comm = work->comm;
    if (!comm->stopped) {
        if (faulty(*work, "FAKE_NCCL_DIE_AT_CALL")) {
            ::kill(::getpid(), SIGKILL);
        }
        if (faulty(*work, "FAKE_NCCL_SILENT_AT_CALL")) {
            std::unique_lock<std::mutex> lock(comm->mutex);
            comm->changed.wait(lock, [comm] { return comm->stopped.load(); });
        } else if (faulty(*work, "FAKE_NCCL_ERROR_AT_CALL")) {
            comm->fail(SYSTEM_ERROR);
        } else if (!send_all(comm->socket, &work->header, sizeof work->header) ||
                   !send_all(comm->socket, fake_cuda_host(work->sent), work->header.bytes) ||
                   !receive_all(comm->socket, fake_cuda_host(work->memory), work->received)) {
            comm->fail(REMOTE_ERROR);
        }
    }
    work->leave();
    comm->end();
}

int enqueue(Comm *comm, What what, int type, int root, const void *send, void *receive, size_t count, void *stream) {
    // The real library takes the current context's GPU to be the one of the memory.
    if (!comm->is_ready() || !fake_cuda_has_current_context()) {
        return INVALID_USAGE;
    }
    if (type != INT64 && type != FLOAT32 && type != UINT64) {
        return INVALID_ARGUMENT;
    }
    size_t bytes = count * (type == FLOAT32 ? 4 : 8);
    size_t received = bytes;
    if (what == ALL_GATHER) {
        received = bytes * static_cast<size_t>(comm->world);
    } else if (what == REDUCE && root != comm->rank) {
        received = 0;
        receive = const_cast<void *>(send);
    }
    // The real library would read or write past its memory.
    if (!fake_cuda_holds(send, bytes) || !fake_cuda_holds(receive, received)) {
        return INVALID_ARGUMENT;
    }
    Header header{what, static_cast<uint64_t>(type), static_cast<uint64_t>(root), bytes};
    comm->begin();
    auto *work = new Work{comm, header, send, receive, received, ++calls};
    work->use();
    if (cuLaunchHostFunc(stream, perform, work) != 0) {
        work->leave();
        comm->end();
        delete work;
        return SYSTEM_ERROR;
    }
    comm->unasked = true;
    return IN_PROGRESS;
}

} // namespace

extern "C" {

struct ncclUniqueId {
    char internal[128];
};

int ncclGetVersion(int *version) {
#ifdef WITHOUT_REVOKE
    *version = 22705;
#else
    *version = 22809;
#endif
    std::string other = fault("FAKE_NCCL_VERSION");
    if (!other.empty()) {
        *version = std::stoi(other);
    }
    return SUCCESS;
}

const char *ncclGetErrorString(int result) {
    return result == REMOTE_ERROR ? "remote process exited or there was a network error" : "an error of the fake NCCL";
}

const char *ncclGetLastError(void *) {
    return "";
}

int ncclGetUniqueId(ncclUniqueId *id) {
    std::random_device random;
    std::string name = "fake-nccl-";
    for (int i = 0; i < 4; ++i) {
        name += std::to_string(random()) + ".";
    }
    *id = {};
    name.copy(id->internal, sizeof id->internal - 1);
    sockaddr_un address;
    socklen_t length = address_of(name, address);
    int listener = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || ::bind(listener, reinterpret_cast<sockaddr *>(&address), length) != 0 ||
        ::listen(listener, 64) != 0) {
        return SYSTEM_ERROR;
    }
    std::thread([listener] { Hub(listener).run(); }).detach();
    return SUCCESS;
}

// As ncclConfig_t of nccl.h 2.28.
struct Config {
    size_t size;
    unsigned magic, version;
    int blocking, cga_cluster_size, min_blocks, max_blocks;
    const char *network;
    int split_share, traffic_class;
    const char *name;
    int collnet, block_policy, shrink_share, nvls_blocks, channels_per_peer, nvlink_centric;
};

// Whether a configuration leaves all to the library but that calls do not block.
bool is_usual(const Config &config) {
    bool is_ours = config.size == sizeof config && config.magic == 0xcafebeef && config.version == 22809;
    bool is_unset = config.network == nullptr && config.name == nullptr;
    for (int number : {config.cga_cluster_size, config.min_blocks, config.max_blocks, config.split_share, config.traffic_class,
                       config.collnet, config.block_policy, config.shrink_share, config.nvls_blocks, config.channels_per_peer,
                       config.nvlink_centric}) {
        is_unset = is_unset && number == INT_MIN;
    }
    return is_ours && is_unset && config.blocking == 0;
}

int ncclCommInitRankConfig(void **result, int world, ncclUniqueId id, int rank, void *config) {
    if (!is_usual(*static_cast<Config *>(config)) || rank < 0 || rank >= world || !fake_cuda_has_current_context()) {
        return INVALID_ARGUMENT;
    }
    auto *comm = new Comm;
    comm->rank = rank;
    comm->world = world;
    comm->name = id.internal;
    comm->socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *result = comm;
    comm->begin();
    std::thread(connect_ranks, comm).detach();
    return IN_PROGRESS;
}

int ncclCommGetAsyncError(void *raw, int *state) {
    auto *comm = static_cast<Comm *>(raw);
    bool unasked = comm->unasked.exchange(false);
    *state = unasked && comm->state == SUCCESS ? static_cast<int>(IN_PROGRESS) : comm->state.load();
    return SUCCESS;
}

int ncclAllReduce(const void *send, void *receive, size_t count, int type, int, void *comm, void *stream) {
    return enqueue(static_cast<Comm *>(comm), ALL_REDUCE, type, 0, send, receive, count, stream);
}

int ncclReduce(const void *send, void *receive, size_t count, int type, int, int root, void *comm, void *stream) {
    return enqueue(static_cast<Comm *>(comm), REDUCE, type, root, send, receive, count, stream);
}

int ncclBroadcast(const void *send, void *receive, size_t count, int type, int root, void *comm, void *stream) {
    return enqueue(static_cast<Comm *>(comm), BROADCAST, type, root, send, receive, count, stream);
}

int ncclAllGather(const void *send, void *receive, size_t count, int type, void *comm, void *stream) {
    return enqueue(static_cast<Comm *>(comm), ALL_GATHER, type, 0, send, receive, count, stream);
}

#ifndef WITHOUT_REVOKE
int ncclCommRevoke(void *raw, int) {
    auto *comm = static_cast<Comm *>(raw);
    if (fault_at("FAKE_NCCL_REVOKE", comm->rank)) {
        hang();
    }
    comm->stop();
    comm->unasked = true;
    return IN_PROGRESS;
}
#endif

int ncclCommAbort(void *raw) {
    auto *comm = static_cast<Comm *>(raw);
    if (fault_at("FAKE_NCCL_ABORT", comm->rank)) {
        hang();
    }
    comm->stop();
    ::close(comm->socket);
    delete comm;
    return SUCCESS;
}

int ncclCommFinalize(void *raw) {
    auto *comm = static_cast<Comm *>(raw);
    Header goodbye{GOODBYE, 0, 0, 0};
    std::unique_lock<std::mutex> lock(comm->mutex);
    comm->changed.wait(lock, [comm] { return comm->running == 0; });
    if (!comm->is_ready()) {
        return INVALID_USAGE;
    }
    comm->finalized = true;
    comm->unasked = true;
    return send_all(comm->socket, &goodbye, sizeof goodbye) ? IN_PROGRESS : REMOTE_ERROR;
}

int ncclCommDestroy(void *raw) {
    auto *comm = static_cast<Comm *>(raw);
    // The real library would wait for its peers.
    if (!comm->finalized || comm->unasked) {
        return INVALID_USAGE;
    }
    comm->stop();
    ::close(comm->socket);
    delete comm;
    return SUCCESS;
}

} // extern "C"
