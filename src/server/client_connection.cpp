#include "server/client_connection.h"

#include <netdb.h>
#include <sys/socket.h>

#include <cerrno>
#include <charconv>
#include <filesystem>
#include <string>

namespace fathom::server {
namespace {

struct End {
  std::string address;
  int port = -1;
  bool operator==(const End&) const = default;
};

using NameOf = int (*)(int, sockaddr*, socklen_t*);  // getpeername or getsockname

End end_of(int socket, NameOf name_of) {
  sockaddr_storage storage = {};
  socklen_t size = sizeof storage;
  auto* const address = reinterpret_cast<sockaddr*>(&storage);
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (name_of(socket, address, &size) != 0) return {};
  if (getnameinfo(address, size, host, sizeof host, port, sizeof port,
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return {};
  return {host, std::atoi(port)};
}

}  // namespace

ClientConnection::ClientConnection(const httplib::Request& request) {
  const End remote = {request.remote_addr, request.remote_port};
  const End local = {request.local_addr, request.local_port};
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", error)) {
    const std::string name = entry.path().filename();
    int descriptor = -1;
    std::from_chars(name.data(), name.data() + name.size(), descriptor);
    if (end_of(descriptor, ::getpeername) != remote) continue;
    if (end_of(descriptor, ::getsockname) == local) socket_ = descriptor;
  }
}

bool ClientConnection::has_hung_up() const {
  if (socket_ < 0) return false;
  char byte;
  const auto size = ::recv(socket_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return size == 0 || (size < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

}  // namespace fathom::server
