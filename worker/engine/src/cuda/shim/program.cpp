// Runs launches that a file describes: `program INPUT OUTPUT SEED`. Numbers of both files are little-endian.
//
// Input: the number of buffers (u32), each with its bytes (u64) and contents; the number of launches (u32), each with the kernel's name (its
// length as u32, its bytes), grid and block (3 u32 each), bytes of dynamic shared memory (u32), and its arguments (their number as u32),
// each a kind (u8) and a value (u64: a buffer's number, or the bits of a number). Output: the contents of all buffers, in order.
#include <map>
#include <string>
#include <tuple>

#include "kernels.h"
#include "faulty.cu"

enum Kind : uint8_t { BUFFER, U32, I64, F32, F64, NONE };

struct Argument {
    Kind kind;
    uint64_t value;
};

struct Buffer {
    char* start;
    size_t bytes;
};

[[noreturn]] static void refuse(const std::string& what) {
    fprintf(stderr, "%s\n", what.c_str());
    exit(2);
}

static std::vector<Buffer> buffers;

// A buffer ends where its pages do, and the page after it cannot be touched: a kernel that goes beyond it ends the program.
static Buffer allocated(size_t bytes) {
    size_t page = 4096, whole = (bytes + page - 1) / page * page;
    void* pages = mmap(nullptr, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) refuse("no memory for a buffer");
    char* start = static_cast<char*>(pages);
    if (mprotect(start + whole, page, PROT_NONE) != 0) refuse("a page cannot be protected");
    return {start + whole - bytes, bytes};
}

template <class T>
T value_of(const Argument& argument, Kind kind, const char* kernel) {
    if (argument.kind != kind) refuse(std::string("kernel ") + kernel + " takes an argument of another type");
    T value;
    memcpy(&value, &argument.value, sizeof(T));
    return value;
}

// An argument as a kernel's parameter of type T.
template <class T>
struct Parameter;
template <>
struct Parameter<unsigned> {
    static unsigned of(const Argument& argument, const char* kernel) { return value_of<unsigned>(argument, U32, kernel); }
};
template <>
struct Parameter<long long> {
    static long long of(const Argument& argument, const char* kernel) { return value_of<long long>(argument, I64, kernel); }
};
template <>
struct Parameter<unsigned long long> {
    static unsigned long long of(const Argument& argument, const char* kernel) { return value_of<unsigned long long>(argument, I64, kernel); }
};
template <>
struct Parameter<float> {
    static float of(const Argument& argument, const char* kernel) { return value_of<float>(argument, F32, kernel); }
};
template <>
struct Parameter<double> {
    static double of(const Argument& argument, const char* kernel) { return value_of<double>(argument, F64, kernel); }
};
template <class T>
struct Parameter<T*> {
    static T* of(const Argument& argument, const char* kernel) {
        if (argument.kind == NONE) return nullptr;
        return reinterpret_cast<T*>(buffers.at(value_of<uint64_t>(argument, BUFFER, kernel)).start);
    }
};

using Bound = std::function<std::function<void()>(const std::vector<Argument>&)>;

template <class... P, size_t... I>
std::function<void()> with(const char* name, void (*kernel)(P...), const std::vector<Argument>& arguments, std::index_sequence<I...>) {
    if (arguments.size() != sizeof...(P)) refuse(std::string("kernel ") + name + " takes another number of arguments");
    std::tuple<P...> values{Parameter<P>::of(arguments[I], name)...};
    return [kernel, values] { std::apply(kernel, values); };
}

template <class... P>
Bound bound(const char* name, void (*kernel)(P...)) {
    return [name, kernel](const std::vector<Argument>& arguments) { return with(name, kernel, arguments, std::index_sequence_for<P...>()); };
}

#define KERNEL(name) {#name, bound(#name, name)},
static const std::map<std::string, Bound> KERNELS = {
    FOR_EACH_KERNEL(KERNEL)
    KERNEL(needs_a_barrier) KERNEL(waits_in_one_branch) KERNEL(ends_before_a_barrier) KERNEL(counts_its_threads)
    KERNEL(writes_past_its_buffer) KERNEL(reads_across_multiples_of_16) KERNEL(writes_across_multiples_of_16)
};

template <class T>
static T read(FILE* file) {
    T value;
    if (fread(&value, sizeof(T), 1, file) != 1) refuse("the input ends early");
    return value;
}

static dim3 read_sizes(FILE* file) {
    unsigned x = read<unsigned>(file), y = read<unsigned>(file), z = read<unsigned>(file);
    return dim3(x, y, z);
}

int main(int count, char** words) {
    if (count != 4) refuse("usage: program INPUT OUTPUT SEED");
    FILE* input = fopen(words[1], "rb");
    if (input == nullptr) refuse(std::string("cannot read ") + words[1]);
    shim::seed = atoi(words[3]);
    shim::random_state = shim::seed;
    for (unsigned left = read<unsigned>(input); left > 0; left--) {
        Buffer buffer = allocated(read<uint64_t>(input));
        if (fread(buffer.start, 1, buffer.bytes, input) != buffer.bytes) refuse("the input ends early");
        buffers.push_back(buffer);
    }
    for (unsigned left = read<unsigned>(input); left > 0; left--) {
        std::string name(read<unsigned>(input), ' ');
        if (fread(name.data(), 1, name.size(), input) != name.size()) refuse("the input ends early");
        dim3 grid = read_sizes(input), block = read_sizes(input);
        unsigned shared = read<unsigned>(input);
        std::vector<Argument> arguments(read<unsigned>(input));
        for (Argument& argument : arguments) {
            argument.kind = read<Kind>(input);
            argument.value = read<uint64_t>(input);
        }
        auto kernel = KERNELS.find(name);
        if (kernel == KERNELS.end()) refuse("there is no kernel " + name);
        shim::launch(kernel->first.c_str(), grid, block, shared, kernel->second(arguments));
    }
    FILE* output = fopen(words[2], "wb");
    if (output == nullptr) refuse(std::string("cannot write ") + words[2]);
    for (const Buffer& buffer : buffers) fwrite(buffer.start, 1, buffer.bytes, output);
    if (fclose(output) != 0) refuse(std::string("cannot write ") + words[2]);
    return 0;
}
