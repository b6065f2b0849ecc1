// Connections to all ranks of a group by Gloo's TCP transport.
//
// Three things of Gloo shape this class:
// - A peer that goes away while a message is on its way leaves the waiting side waiting: Gloo reports it only to receives that have not begun.
//   So a receive that begins with the peer's farewell alone (the sentry) lies at every pair, and `watch` frees whoever waits when the
//   sentry hears of a loss.
// - Closing a pair wakes nobody who waits in a buffer. So `end` aborts the waits themselves.
// - A message that is longer than its receive ends the process. So callers agree on lengths before they exchange.

#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gloo/transport/context.h>
#include <gloo/transport/device.h>
#include <gloo/transport/unbound_buffer.h>

#include "rust/cxx.h"

namespace rust {
namespace behavior {

// Nothing that is thrown passes into Rust.
template <typename Try, typename Fail>
static void trycatch(Try &&func, Fail &&fail) noexcept {
  try {
    func();
  } catch (const std::exception &e) {
    fail(e.what());
  } catch (...) {
    fail("an exception without words");
  }
}

} // namespace behavior
} // namespace rust

namespace obsdiff {

struct Piece;
struct Report;

class Mesh {
 public:
  Mesh(const std::string &host, size_t rank, size_t world, uint64_t connect_millis);
  ~Mesh();
  Mesh(const Mesh &) = delete;
  Mesh &operator=(const Mesh &) = delete;

  // See mesh.rs. `exchange` and `connect` are called by one thread at a time; `watch` by another one, once; `end` by any.
  rust::Vec<uint8_t> address(size_t peer) const;
  Report connect(size_t peer, rust::Slice<const uint8_t> address) const;
  void connected() const;
  void watch() const;
  void end(bool hard) const;
  Report exchange(
      rust::Slice<const uint8_t> send,
      rust::Slice<const Piece> outgoing,
      rust::Slice<uint8_t> receive,
      rust::Slice<const Piece> incoming,
      uint64_t silence_millis) const;

 private:
  using Buffer = gloo::transport::UnboundBuffer;

  struct Transfer {
    size_t rank;
    bool sends;
    size_t length;
    std::unique_ptr<Buffer> buffer;
  };

  class Waiting;

  void check(size_t peer) const;
  Report wait(const Transfer &transfer, std::chrono::milliseconds silence) const;
  std::optional<Report> over(size_t rank) const;
  void arm(Buffer &sentry) const;
  void lose(size_t peer, const std::string &why) const;
  void leave(size_t peer) const;
  void free(std::optional<size_t> peer) const;
  void say_farewell() const;
  void close() const;

  const size_t rank_;
  const size_t world_;
  std::shared_ptr<gloo::transport::Device> device_;
  std::shared_ptr<gloo::transport::Context> context_;
  // Numbers exchanges: the same at all ranks.
  mutable uint64_t slot_{0};

  // Guards all that follows.
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  mutable bool connected_{false};
  mutable bool ended_{false};
  mutable bool hard_{false};
  // The first peer that went without a farewell, and what Gloo says: the group is of no use any more.
  mutable std::optional<std::pair<size_t, std::string>> lost_;
  // Peers that took leave: what they sent before has arrived.
  mutable std::vector<bool> left_;
  // What the open exchange waits for.
  mutable const std::vector<Transfer> *transfers_{nullptr};
  mutable Buffer *sentry_{nullptr};
};

std::unique_ptr<Mesh> open_mesh(rust::Str host, size_t rank, size_t world, uint64_t connect_millis);

} // namespace obsdiff
