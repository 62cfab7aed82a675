// Whether the client of a request is still there while its answer is being made. The HTTP library
// tells it only to those that write.
#pragma once

#include <httplib.h>

namespace fathom::server {

class ClientConnection {
 public:
  // Looks for the socket by its two ends; where there is none, the client counts as there.
  explicit ClientConnection(const httplib::Request& request);

  // The client has closed its side, or the connection is broken. Reads nothing, does not block.
  // Valid while the request's handler or content provider runs.
  bool has_hung_up() const;

 private:
  int socket_ = -1;
};

}  // namespace fathom::server
