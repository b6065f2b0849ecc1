#include "obsdiff-worker/src/collective/gloo/mesh.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include <sys/socket.h>

#include <gloo/transport/address.h>
#include <gloo/transport/pair.h>
#include <gloo/transport/tcp/address.h>
#include <gloo/transport/tcp/device.h>

#include "obsdiff-worker/src/collective/gloo/mesh.rs.h"

// Takes the place of Gloo's own, which throws on Gloo's thread, and so ends the process, where a peer has reset a connection that was
// just made: it died, or was no peer but somebody who looked for open ports. Without an address it is found lost by the first read.
gloo::transport::tcp::Address gloo::transport::tcp::Address::fromPeerName(int fd) {
  sockaddr_storage peer{};
  socklen_t length = sizeof(peer);
  if (getpeername(fd, reinterpret_cast<sockaddr *>(&peer), &length) == -1) {
    peer = sockaddr_storage{};
    peer.ss_family = AF_INET;
  }
  return Address(peer);
}

namespace obsdiff {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// The slot of sentries and farewells, which no exchange ever has.
constexpr uint64_t kSentry = ~uint64_t{0};
// Longer than any group lives; short enough to be added to a clock.
constexpr milliseconds kForever = std::chrono::hours(24 * 365);
// Gloo waits for a connection five times as long as for anything else.
constexpr uint64_t kConnectFactor = 5;
// How long a farewell may take. It fits any socket's buffer: only a peer that says farewell itself is late.
constexpr milliseconds kFarewell = std::chrono::seconds(1);

Report report(Ended ended, size_t rank = 0, const std::string &why = "") {
  return Report{ended, rank, rust::String::lossy(why)};
}

} // namespace

// Lets `end` and `lose` reach what an exchange waits for, for as long as it lives.
class Mesh::Waiting {
 public:
  Waiting(const Mesh &mesh, const std::vector<Transfer> &transfers) : mesh_(mesh) {
    std::lock_guard<std::mutex> lock(mesh_.mutex_);
    mesh_.transfers_ = &transfers;
  }
  ~Waiting() {
    std::lock_guard<std::mutex> lock(mesh_.mutex_);
    mesh_.transfers_ = nullptr;
  }

 private:
  const Mesh &mesh_;
};

Mesh::Mesh(const std::string &host, size_t rank, size_t world, uint64_t connect_millis)
    : rank_(rank), world_(world), left_(world, false) {
  gloo::transport::tcp::attr attr;
  attr.hostname = host;
  device_ = gloo::transport::tcp::CreateDevice(attr);
  context_ = device_->createContext(static_cast<int>(rank), static_cast<int>(world));
  context_->setTimeout(milliseconds(std::max<uint64_t>(1, connect_millis / kConnectFactor)));
  for (size_t peer = 0; peer < world_; peer++) {
    if (peer != rank_) {
      context_->createPair(static_cast<int>(peer));
    }
  }
}

Mesh::~Mesh() = default;

void Mesh::check(size_t peer) const {
  if (peer >= world_ || peer == rank_) {
    throw std::out_of_range("no such peer");
  }
}

rust::Vec<uint8_t> Mesh::address(size_t peer) const {
  check(peer);
  rust::Vec<uint8_t> bytes;
  for (char byte : context_->getPair(static_cast<int>(peer))->address().bytes()) {
    bytes.push_back(static_cast<uint8_t>(byte));
  }
  return bytes;
}

Report Mesh::connect(size_t peer, rust::Slice<const uint8_t> address) const {
  check(peer);
  const auto begun = steady_clock::now();
  try {
    context_->getPair(static_cast<int>(peer))->connect(std::vector<char>(address.begin(), address.end()));
  } catch (const std::exception &e) {
    if (auto ended = over(peer)) {
      return *ended;
    }
    const bool late = steady_clock::now() - begun >= context_->getTimeout() * kConnectFactor;
    return report(late ? Ended::Silent : Ended::Lost, peer, e.what());
  }
  // A pair that was closed meanwhile looks like one that is connected.
  return over(peer).value_or(report(Ended::Well));
}

void Mesh::connected() const {
  std::lock_guard<std::mutex> lock(mutex_);
  connected_ = true;
  changed_.notify_all();
}

void Mesh::watch() const {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return connected_ || ended_; });
  }
  for (;;) {
    // A byte for each peer's farewell.
    std::vector<uint8_t> said(world_, 0);
    auto sentry = context_->createUnboundBuffer(said.data(), said.size());
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (ended_) {
        break;
      }
      sentry_ = sentry.get();
    }
    try {
      arm(*sentry);
      sentry->waitRecv(nullptr, kForever);
    } catch (const std::exception &) {
      // Who is lost refuses the next sentry, and says why.
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      sentry_ = nullptr;
    }
    sentry.reset();
    for (size_t peer = 0; peer < world_; peer++) {
      if (said[peer] != 0) {
        leave(peer);
      }
    }
  }
  close();
}

// Lays the sentry at every peer that is still there.
void Mesh::arm(Buffer &sentry) const {
  for (size_t peer = 0; peer < world_; peer++) {
    if (peer == rank_ || left_[peer]) {
      continue;
    }
    try {
      context_->getPair(static_cast<int>(peer))->recv(&sentry, kSentry, peer, 1);
    } catch (const std::exception &e) {
      lose(peer, e.what());
    }
  }
}

// Everything fails from here on.
void Mesh::lose(size_t peer, const std::string &why) const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!lost_) {
    lost_ = std::make_pair(peer, why);
    free(std::nullopt);
  }
  left_[peer] = true;
}

// What this peer would have to send or receive fails from here on.
void Mesh::leave(size_t peer) const {
  std::lock_guard<std::mutex> lock(mutex_);
  left_[peer] = true;
  free(peer);
}

// Frees what waits for a peer, or for any. The mutex is held.
void Mesh::free(std::optional<size_t> peer) const {
  if (transfers_ == nullptr) {
    return;
  }
  for (const auto &transfer : *transfers_) {
    if (!peer || transfer.rank == *peer) {
      transfer.sends ? transfer.buffer->abortWaitSend() : transfer.buffer->abortWaitRecv();
    }
  }
}

void Mesh::end(bool hard) const {
  std::lock_guard<std::mutex> lock(mutex_);
  ended_ = true;
  hard_ = hard_ || hard;
  changed_.notify_all();
  if (sentry_ != nullptr) {
    sentry_->abortWaitRecv();
  }
  free(std::nullopt);
}

// Leaves the peers: those who still use the group are to know that it is over, or else that nothing was left unsaid.
void Mesh::close() const {
  bool in_peace;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    in_peace = connected_ && !hard_ && !lost_;
  }
  if (in_peace) {
    return say_farewell();
  }
  for (size_t peer = 0; peer < world_; peer++) {
    if (peer != rank_) {
      context_->getPair(static_cast<int>(peer))->close();
    }
  }
}

void Mesh::say_farewell() const {
  uint8_t farewell = 1;
  std::vector<std::unique_ptr<Buffer>> sent;
  for (size_t peer = 0; peer < world_; peer++) {
    if (peer == rank_ || left_[peer]) {
      continue;
    }
    try {
      auto buffer = context_->createUnboundBuffer(&farewell, sizeof(farewell));
      context_->getPair(static_cast<int>(peer))->send(buffer.get(), kSentry, 0, sizeof(farewell));
      sent.push_back(std::move(buffer));
    } catch (const std::exception &) {
      // It has gone itself.
    }
  }
  const auto begun = steady_clock::now();
  for (const auto &buffer : sent) {
    try {
      const auto passed = std::chrono::duration_cast<milliseconds>(steady_clock::now() - begun);
      buffer->waitSend(nullptr, std::max(milliseconds(0), kFarewell - passed));
    } catch (const std::exception &) {
      // As above.
    }
  }
}

std::optional<Report> Mesh::over(size_t rank) const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (ended_) {
    return report(Ended::Here);
  }
  if (lost_) {
    return report(Ended::Lost, lost_->first, lost_->second);
  }
  if (left_[rank]) {
    return report(Ended::Lost, rank, "it left the group");
  }
  return std::nullopt;
}

Report Mesh::exchange(
    rust::Slice<const uint8_t> send,
    rust::Slice<const Piece> outgoing,
    rust::Slice<uint8_t> receive,
    rust::Slice<const Piece> incoming,
    uint64_t silence_millis) const {
  const uint64_t slot = slot_++;
  std::vector<Transfer> transfers;
  const auto add = [&](const Piece &piece, bool sends, uint8_t *base, size_t size) {
    check(piece.rank);
    if (piece.offset > size || piece.length > size - piece.offset) {
      throw std::out_of_range("a piece outside its buffer");
    }
    auto buffer = context_->createUnboundBuffer(base + piece.offset, piece.length);
    transfers.push_back(Transfer{piece.rank, sends, piece.length, std::move(buffer)});
  };
  for (const Piece &piece : incoming) {
    add(piece, false, receive.data(), receive.size());
  }
  for (const Piece &piece : outgoing) {
    // Gloo only reads what it sends.
    add(piece, true, const_cast<uint8_t *>(send.data()), send.size());
  }
  const Waiting waiting(*this, transfers);
  for (const auto &transfer : transfers) {
    if (auto ended = over(transfer.rank)) {
      return *ended;
    }
    auto &pair = context_->getPair(static_cast<int>(transfer.rank));
    try {
      if (transfer.sends) {
        pair->send(transfer.buffer.get(), slot, 0, transfer.length);
      } else {
        pair->recv(transfer.buffer.get(), slot, 0, transfer.length);
      }
    } catch (const std::exception &e) {
      return over(transfer.rank).value_or(report(Ended::Lost, transfer.rank, e.what()));
    }
  }
  for (const auto &transfer : transfers) {
    const Report ended = wait(transfer, milliseconds(silence_millis));
    if (ended.ended != Ended::Well) {
      return ended;
    }
  }
  return report(Ended::Well);
}

Report Mesh::wait(const Transfer &transfer, milliseconds silence) const {
  const auto begun = steady_clock::now();
  const auto done = [&](milliseconds most) {
    return transfer.sends ? transfer.buffer->waitSend(most) : transfer.buffer->waitRecv(most);
  };
  try {
    if (done(silence)) {
      return report(Ended::Well);
    }
  } catch (const std::exception &e) {
    // Gloo closes all pairs when a wait ends by its timeout: what the sentry hears after that says nothing of the peers.
    const bool late = steady_clock::now() - begun >= silence;
    const auto ended = over(transfer.rank);
    if (ended && (!late || ended->ended == Ended::Here)) {
      return *ended;
    }
    return report(late ? Ended::Silent : Ended::Lost, transfer.rank, e.what());
  }
  // It was freed; what it waited for may have come before. Where it has not, Gloo closes all pairs, as above.
  const auto ended = over(transfer.rank);
  try {
    if (done(milliseconds(0))) {
      return report(Ended::Well);
    }
  } catch (const std::exception &) {
  }
  return ended.value_or(report(Ended::Lost, transfer.rank, "its messages were given up"));
}

std::unique_ptr<Mesh> open_mesh(rust::Str host, size_t rank, size_t world, uint64_t connect_millis) {
  return std::make_unique<Mesh>(std::string(host), rank, world, connect_millis);
}

} // namespace obsdiff
