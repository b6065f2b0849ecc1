// Runs CUDA kernels on the processor, so that tests hold them to the engine's own numbers where there is no GPU.
//
// The blocks of a launch run one after another; the threads of a block take turns, or run at the same time:
// - by default each CUDA thread is a fiber, which runs until a barrier, a shuffle or an atomic operation. A seed sets the order of blocks
//   and threads (0: ascending, 1: descending, otherwise random). A kernel that lacks a barrier gives another result in some order.
// - with SHIM_REAL_THREADS each is a thread of the system, for ThreadSanitizer to find data races between threads of a block.
//
// It ends the program, with the kernel's line, where threads wait at different barriers, where a thread ends while others wait, and where
// nobody can go on; and, where it is compiled with -fsanitize=alignment, where a number or a vector of them is read or written at an address
// that is no multiple of its size. Shared memory holds a NaN pattern when a block begins, so that a kernel does not rely on zeros. It shows
// no races between blocks other than by their order, and no limits of a device.
#pragma once
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include <math.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
// All shared memory lies in one section of the program, which is filled again for each block.
#define __shared__ static __attribute__((section("block_shared")))
#define __syncthreads() shim::wait(shim::block_of_this_thread(), __LINE__)
#define __syncwarp() shim::wait(shim::warp_of_this_thread(), __LINE__)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern "C" char __start_block_shared[], __stop_block_shared[];

namespace shim {

constexpr unsigned WARP = 32;
constexpr unsigned MOST_THREADS = 1024;
constexpr size_t STACK = 128 * 1024;
// What the ends of stacks that follow each other are apart besides, and at most: at the same place of each, they would share a few lines of
// the processor's caches, and every switch would miss them.
constexpr size_t STAGGER = 9 * 64, MOST_STAGGER = STACK / 2;

// Threads that wait for each other: a block or a warp.
struct Group {
    unsigned size = 0, waiting = 0, ended = 0;
    int line = 0;
    unsigned long long generation = 0;
};

struct Thread {
    dim3 index;
    unsigned rank = 0;
    // What it shows the other threads of its warp.
    uint64_t shown = 0;
    // Where it stands still: at a barrier of this group, since its generation was this.
    const Group* waits_for = nullptr;
    unsigned long long since = 0;
#ifndef SHIM_REAL_THREADS
    ucontext_t first;
    void* next[5];
    bool begun = false, ended = false;
#endif
};

static Thread threads[MOST_THREADS];
static Group block, warps[MOST_THREADS / WARP];
static unsigned standing = 0, living = 0;
static uint64_t random_state = 0;
static unsigned seed = 0;
static const char* kernel = "";
static const std::function<void()>* body = nullptr;
// Whether no thread of the kernel waits for another: then they need no stacks of their own.
static bool threads_never_wait = false;
static std::vector<char> dynamic_shared;
#ifdef SHIM_REAL_THREADS
static thread_local Thread* current = nullptr;
static std::mutex lock;
static std::condition_variable released;
#else
static Thread* current = nullptr;
static ucontext_t unused;
static void* scheduler[5];
static char* stacks = nullptr;
#endif

}  // namespace shim

static dim3 blockIdx, blockDim, gridDim;
#define threadIdx (shim::current->index)

namespace shim {

[[noreturn]] static void fail(const char* what, int line) {
    fprintf(stderr, "kernel %s, block %u %u %u: %s (line %d)\n", kernel, blockIdx.x, blockIdx.y, blockIdx.z, what, line);
    fflush(stderr);
    // Not exit: other threads may still run.
    _Exit(3);
}

static uint64_t random_number() {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return random_state >> 33;
}

static Group& block_of_this_thread() { return block; }
static Group& warp_of_this_thread() { return warps[current->rank / WARP]; }

static void arrive(Group& group, int line) {
    if (group.ended != 0) fail("a barrier that some threads never reach, because they have ended", line);
    if (group.waiting == 0) group.line = line;
    if (group.line != line) fail("threads wait at different barriers", line);
    group.waiting += 1;
    current->waits_for = &group;
    current->since = group.generation;
    standing += 1;
    if (group.waiting == group.size) {
        standing -= group.size;
        group.waiting = 0;
        group.generation += 1;
    } else if (standing == living) {
        fail("no thread can go on: barriers that not all threads reach", line);
    }
}

static bool may_go_on(const Thread& thread) {
    return thread.waits_for == nullptr || thread.waits_for->generation != thread.since;
}

static void end() {
    Group& warp = warp_of_this_thread();
    block.ended += 1;
    warp.ended += 1;
    living -= 1;
    for (const Group* group : {&block, &warp})
        if (group->waiting != 0) fail("a thread ends while others wait at a barrier", group->line);
    if (living != 0 && standing == living) fail("no thread can go on: barriers that not all threads reach", block.line);
}

#ifdef SHIM_REAL_THREADS

static void wait(Group& group, int line) {
    std::unique_lock<std::mutex> held(lock);
    arrive(group, line);
    Thread& me = *current;
    released.notify_all();
    released.wait(held, [&] { return may_go_on(me); });
    me.waits_for = nullptr;
}

static void perhaps_yield() {}

static void run_threads(unsigned count) {
    std::vector<std::thread> running;
    for (unsigned i = 0; i < count; i++)
        running.emplace_back([i] {
            current = &threads[i];
            (*body)();
            std::lock_guard<std::mutex> held(lock);
            end();
        });
    for (auto& thread : running) thread.join();
}

#else

// Contexts switch to a fiber's stack once; from then on jumps do, which need no call of the system, nor of the C library. Each is a function of
// its own, of which callers assume nothing: no variable lives across a jump, and other fibers change what they like meanwhile.
#define JUMPS __attribute__((noipa))

[[noreturn]] JUMPS static void jump(void** to) { __builtin_longjmp(to, 1); }

JUMPS static void leave() {
    if (__builtin_setjmp(current->next) == 0) jump(scheduler);
}

JUMPS static void enter(Thread& thread) {
    current = &thread;
    if (__builtin_setjmp(scheduler) != 0) return;
    if (thread.begun) jump(thread.next);
    thread.begun = true;
    swapcontext(&unused, &thread.first);
}

static void wait(Group& group, int line) {
    if (threads_never_wait) fail("a barrier in a kernel that is said to have none", line);
    arrive(group, line);
    leave();
    current->waits_for = nullptr;
}

// Others may come first where the order of atomic operations could matter.
static void perhaps_yield() {
    if (seed > 1 && random_number() % 4 == 0) leave();
}

// A fiber runs one thread of a block after another: making a new one takes calls of the system.
static void fiber() {
    for (;;) {
        (*body)();
        end();
        current->ended = true;
        leave();
    }
}

static void run_threads(unsigned count) {
    if (threads_never_wait) {
        for (unsigned i = 0; i < count; i++) {
            current = &threads[i];
            (*body)();
        }
        return;
    }
    if (stacks == nullptr) {
        void* pages = mmap(nullptr, STACK * MOST_THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (pages == MAP_FAILED) fail("no memory for the threads' stacks", 0);
        stacks = static_cast<char*>(pages);
    }
    std::vector<unsigned> order(count);
    for (unsigned i = 0; i < count; i++) {
        order[i] = seed == 1 ? count - 1 - i : i;
        threads[i].ended = false;
        if (threads[i].begun) continue;
        getcontext(&threads[i].first);
        threads[i].first.uc_stack.ss_sp = stacks + i * STACK;
        threads[i].first.uc_stack.ss_size = STACK - i * STAGGER % MOST_STAGGER;
        makecontext(&threads[i].first, fiber, 0);
    }
    while (living != 0) {
        if (seed > 1)
            for (unsigned i = count - 1; i > 0; i--) std::swap(order[i], order[random_number() % (i + 1)]);
        for (unsigned i : order)
            if (!threads[i].ended && may_go_on(threads[i])) enter(threads[i]);
    }
}

#endif

static void run_block(unsigned count) {
    memset(__start_block_shared, 0xff, __stop_block_shared - __start_block_shared);
    std::fill(dynamic_shared.begin(), dynamic_shared.end(), char(0xff));
    block = Group();
    block.size = count;
    standing = 0;
    living = count;
    for (unsigned first = 0; first < count; first += WARP) {
        warps[first / WARP] = Group();
        warps[first / WARP].size = std::min(WARP, count - first);
    }
    for (unsigned i = 0; i < count; i++) {
        threads[i].index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y);
        threads[i].rank = i;
        threads[i].waits_for = nullptr;
    }
    run_threads(count);
}

// Runs `of_thread` for each thread of each block.
static void launch(const char* name, dim3 grid, dim3 threads_of_block, size_t dynamic_bytes, const std::function<void()>& of_thread) {
    kernel = name;
    body = &of_thread;
    gridDim = grid;
    blockDim = threads_of_block;
    dynamic_shared.assign(dynamic_bytes, 0);
    unsigned count = blockDim.x * blockDim.y * blockDim.z;
    if (count == 0 || count > MOST_THREADS) fail("a block has 1 to 1024 threads", 0);
    std::vector<dim3> order;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) order.push_back(dim3(x, y, z));
    if (seed == 1) std::reverse(order.begin(), order.end());
    if (seed > 1)
        for (size_t i = order.size(); i-- > 1;) std::swap(order[i], order[random_number() % (i + 1)]);
    for (dim3 at : order) {
        blockIdx = at;
        run_block(count);
    }
}

// What lane `from` of this thread's warp has for `value`. All threads of the warp take part.
template <class T>
T exchanged(T value, unsigned from, int line) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle takes at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    current->shown = bits;
    wait(warp_of_this_thread(), line);
    unsigned rank = current->rank / WARP * WARP + from % WARP;
    if (rank < block.size) memcpy(&value, &threads[rank].shown, sizeof(T));
    wait(warp_of_this_thread(), -line);
    return value;
}

static unsigned lane() { return current->rank % WARP; }

// What each thread of a warp has of a product's factors.
static uint32_t factors[MOST_THREADS][6];

// Adds a warp's product of 16 x 16 and 16 x 8 numbers, laid out as PTX has it for `mma.m16n8k16`. `to_f32` widens a number of 16 bits. Products
// are exact and their sum is rounded once; a GPU may round it more often.
template <class ToF32>
void add_product(float* sums, const uint32_t* left, const uint32_t* right, ToF32 to_f32, int line) {
    if (warp_of_this_thread().size != WARP) fail("a product without all 32 threads of a warp", line);
    memcpy(factors[current->rank], left, 4 * sizeof(uint32_t));
    memcpy(factors[current->rank] + 4, right, 2 * sizeof(uint32_t));
    wait(warp_of_this_thread(), line);
    const uint32_t(*of_warp)[6] = factors + current->rank / WARP * WARP;
    auto number = [&](unsigned of_lane, unsigned word, unsigned k) {
        return static_cast<double>(to_f32(static_cast<unsigned short>(of_warp[of_lane][word] >> 16 * (k % 2))));
    };
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = lane() / 4 + 8 * (i / 2), column = lane() % 4 * 2 + i % 2;
        double sum = sums[i];
        for (unsigned k = 0; k < 16; k++)
            sum += number(row % 8 * 4 + k % 8 / 2, row / 8 + 2 * (k / 8), k) * number(column * 4 + k % 8 / 2, 4 + k / 8, k);
        sums[i] = static_cast<float>(sum);
    }
    wait(warp_of_this_thread(), -line);
}

static void need_all(unsigned mask, int line) {
    if (mask != 0xffffffffu || warp_of_this_thread().size != WARP) fail("a shuffle without all 32 threads of a warp", line);
}

}  // namespace shim

#define __shfl_sync(mask, value, from) (shim::need_all(mask, __LINE__), shim::exchanged(value, from, __LINE__))
#define __shfl_xor_sync(mask, value, by) (shim::need_all(mask, __LINE__), shim::exchanged(value, shim::lane() ^ (by), __LINE__))

// The shared memory whose size a launch sets. CUDA's own way, `extern __shared__`, has no counterpart here: kernels name it by this.
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(shim::dynamic_shared.data())

template <class T, class U>
T atomicAdd(T* at, U by) {
    shim::perhaps_yield();
    return __atomic_fetch_add(at, T(by), __ATOMIC_RELAXED);
}

template <class T, class Better>
T replaced_where(T* at, T by, Better better) {
    shim::perhaps_yield();
    T found = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (better(by, found) && !__atomic_compare_exchange_n(at, &found, by, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return found;
}

template <class T, class U>
T atomicMin(T* at, U by) {
    return replaced_where(at, T(by), [](T a, T b) { return a < b; });
}

template <class T, class U>
T atomicMax(T* at, U by) {
    return replaced_where(at, T(by), [](T a, T b) { return a > b; });
}

// Reads and writes of what leaves a GPU's caches first.
template <class T>
T __ldcs(const T* at) {
    return *at;
}

template <class T>
void __stcs(T* at, T x) {
    *at = x;
}

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

inline long long __double_as_longlong(double x) {
    long long bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
