#include "model/rank_group.h"

#include <signal.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "base/check_macros.h"  // LibTorch's headers define their own

namespace fathom::model {
namespace {

using std::chrono::milliseconds;
using torch::Tensor;

// How long a rank that saw another go waits for the rest to say that they are still there.
constexpr milliseconds kRollCall(2000);
// How long the first rank may prepare what the others wait for.
constexpr milliseconds kPreparation = std::chrono::hours(72);

std::vector<uint8_t> bytes_of(const std::string& text) { return {text.begin(), text.end()}; }

// c10d's texts come with source lines before and stack traces behind.
std::string first_sentence(std::string text) {
  text = text.substr(0, text.find('\n'));
  if (text.starts_with('['))
    if (const size_t end = text.find("] "); end != std::string::npos) text = text.substr(end + 2);
  return text;
}

// Ranks on one machine stay on its loopback interface; others are reached by the interface that
// GLOO_SOCKET_IFNAME names, or by this machine's name.
std::shared_ptr<gloo::transport::Device> device_for(const std::string& address) {
  using c10d::ProcessGroupGloo;
  if (address == "127.0.0.1" || address == "localhost")
    return ProcessGroupGloo::createDeviceForHostname("127.0.0.1");
  if (const char* name = std::getenv("GLOO_SOCKET_IFNAME"))
    return ProcessGroupGloo::createDeviceForInterface(name);
  return ProcessGroupGloo::createDefaultDevice();
}

}  // namespace

struct RankGroup::Connection {
  c10::intrusive_ptr<c10d::Store> store;  // every rank of the training run sees it
  std::string name;                       // of the group
  std::string address;
  milliseconds timeout;
  std::vector<int> ranks;  // the group's members among all ranks of the training run
  int total = 1;           // of those
  int num_chosen = 0;      // groups of this one's ranks: the same members may form several
  bool is_beside = false;  // its ranks learn of a loss at different times
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group;

  void connect(int rank, int size) {
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(device_for(address));
    options->threads = 1;
    auto of_group = c10::make_intrusive<c10d::PrefixStore>(name, store);
    group = c10::make_intrusive<c10d::ProcessGroupGloo>(of_group, rank, size, options);
  }
};

RankGroup RankGroup::join(const RankGroupOptions& options) {
  RankGroup ranks;
  if (options.size == 1) return ranks;
  // Writing to a rank that has died is an error to report, not a reason to end without a word.
  signal(SIGPIPE, SIG_IGN);
  ranks.rank_ = options.rank;
  ranks.size_ = options.size;
  ranks.connection_ = std::make_shared<Connection>();
  Connection& c = *ranks.connection_;
  c.name = "all";
  c.address = options.address;
  c.timeout = options.timeout;
  c.total = options.size;
  c.ranks.resize(options.size);
  std::iota(c.ranks.begin(), c.ranks.end(), 0);
  c10d::TCPStoreOptions store;
  store.port = options.port;
  store.isServer = options.rank == 0;
  store.numWorkers = options.size;
  store.timeout = options.timeout;
  try {
    c.store = c10::make_intrusive<c10d::TCPStore>(options.address, store);
    c.connect(options.rank, options.size);
  } catch (const std::exception& error) {
    fail(
        "rank {} of {} found the others not at {}:{} ({}); start all ranks with the same "
        "WORLD_SIZE, MASTER_ADDR and MASTER_PORT, a port that is free on rank 0's machine",
        options.rank, options.size, options.address, options.port, first_sentence(error.what()));
  }
  return ranks;
}

RankGroup RankGroup::choose(const std::vector<int>& members) const {
  const auto self = std::find(members.begin(), members.end(), rank_);
  CHECK(self != members.end(), "rank {} chooses a group of others", rank_);
  const int number = connection_ ? connection_->num_chosen++ : 0;
  if (std::ssize(members) == size_) return *this;
  RankGroup part;
  if (members.size() == 1) return part;
  part.rank_ = static_cast<int>(self - members.begin());
  part.size_ = static_cast<int>(members.size());
  part.connection_ = std::make_shared<Connection>(*connection_);
  Connection& c = *part.connection_;
  c.ranks.clear();
  c.num_chosen = 0;
  c.name += fmt::format("/{}:", number);
  for (int member : members) {
    c.ranks.push_back(connection_->ranks[member]);
    c.name += fmt::format(" {}", c.ranks.back());
  }
  part.wait_for([&] { c.connect(part.rank_, part.size_); });
  return part;
}

RankGroup RankGroup::beside(const std::string& name) const {
  if (size_ == 1) return {};
  RankGroup other = *this;
  other.connection_ = std::make_shared<Connection>(*connection_);
  Connection& c = *other.connection_;
  c.num_chosen = 0;
  c.is_beside = true;
  c.name += fmt::format("/{}: {}", connection_->num_chosen++, name);
  other.wait_for([&] { c.connect(rank_, size_); });
  return other;
}

template <typename Call>
void RankGroup::wait_for(const Call& call) const {
  try {
    call();
  } catch (const std::exception& error) {
    fail_as_lost(first_sentence(error.what()));
  }
}

// The ranks that are still there find out within moments of each other: whoever leaves no word
// meanwhile is the one that is gone.
void RankGroup::fail_as_lost(const std::string& reason) const {
  const Connection& c = *connection_;
  if (c.is_beside) throw RankLost(fmt::format("one of {} ranks is gone ({})", c.total, reason));
  const auto key = [&](int rank) { return c.name + "/alive/" + std::to_string(rank); };
  std::string lost;
  try {
    c.store->add(key(rank_), 1);  // unlike set, waits for the store's answer
    for (int rank = 0; rank < size_; ++rank) try {
        if (rank != rank_) c.store->wait({key(rank)}, kRollCall);
      } catch (const std::exception&) {
        lost += (lost.empty() ? "" : ", ") + std::to_string(c.ranks[rank]);
      }
  } catch (const std::exception&) {
    lost = "0";  // the store is its
  }
  if (lost.empty()) lost = "(which one is not known)";
  throw RankLost(fmt::format("rank {} of {} is gone ({})", lost, c.total, reason));
}

void RankGroup::all_reduce(Tensor x) const {
  if (size_ == 1 || x.numel() == 0) return;
  const Tensor all = all_gather(x.reshape({1, -1}));
  Tensor sum = all[0].clone();
  for (int rank = 1; rank < size_; ++rank) sum.add_(all[rank]);
  x.copy_(sum.view_as(x));
}

void RankGroup::broadcast(Tensor x, int root) const {
  if (size_ == 1 || x.numel() == 0) return;
  CHECK(x.is_contiguous());
  std::vector<Tensor> tensors{x};
  c10d::BroadcastOptions options;
  options.rootRank = root;
  wait_for([&] { connection_->group->broadcast(tensors, options)->wait(); });
}

Tensor RankGroup::all_gather(const Tensor& x) const {
  if (size_ == 1) return x;
  auto shape = x.sizes().vec();
  shape[0] *= size_;
  Tensor all = torch::empty(shape, x.options().requires_grad(false));
  if (all.numel() == 0) return all;
  std::vector<Tensor> inputs{x.detach().contiguous()};
  std::vector<std::vector<Tensor>> outputs{all.chunk(size_)};
  wait_for([&] { connection_->group->allgather(outputs, inputs)->wait(); });
  return all;
}

Tensor RankGroup::all_to_all(const Tensor& x, std::span<const int64_t> send_counts,
                             std::span<const int64_t> receive_counts) const {
  if (size_ == 1) return x;
  CHECK_EQ(std::ssize(send_counts), size_);
  CHECK_EQ(std::ssize(receive_counts), size_);
  CHECK_EQ(std::accumulate(send_counts.begin(), send_counts.end(), int64_t{0}), x.size(0));
  auto shape = x.sizes().vec();
  shape[0] = std::accumulate(receive_counts.begin(), receive_counts.end(), int64_t{0});
  Tensor in = x.detach().contiguous(), out = torch::empty(shape, x.options().requires_grad(false));
  std::vector<int64_t> send(send_counts.begin(), send_counts.end());
  std::vector<int64_t> receive(receive_counts.begin(), receive_counts.end());
  wait_for([&] { connection_->group->alltoall_base(out, in, receive, send)->wait(); });
  return out;
}

Tensor RankGroup::reduce_scatter(const Tensor& x, std::span<const int64_t> counts) const {
  if (size_ == 1) return x;
  const std::vector<int64_t> mine(size_, counts[rank_]);
  const Tensor parts = all_to_all(x, counts, mine);
  Tensor sum = parts.narrow(0, 0, counts[rank_]).clone();
  for (int rank = 1; rank < size_; ++rank)
    sum.add_(parts.narrow(0, rank * counts[rank_], counts[rank_]));
  return sum;
}

void RankGroup::barrier() const { all_gather(torch::zeros({1})); }

void RankGroup::after_first(const std::string& name, const std::function<void()>& work) const {
  if (is_first()) work();
  if (size_ == 1) return;
  const std::string key = connection_->name + "/done/" + name;
  wait_for([&] {
    if (is_first())
      connection_->store->set(key, bytes_of("1"));
    else
      connection_->store->wait({key}, kPreparation);
  });
}

}  // namespace fathom::model
