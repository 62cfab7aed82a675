// An error as the API reports it: {"error": {"message", "type", "param", "code"}}.
#pragma once

#include <string>

#include "base/check.h"
#include "base/json.h"

namespace fathom::server {

struct ApiError : Error {
  ApiError(int status, const std::string& message, std::string param = "",
           std::string code = "invalid_request_error")
      : Error(message), status(status), param(std::move(param)), code(std::move(code)) {}
  int status;
  std::string param;  // the field at fault; empty: none
  std::string code;
};

inline Json error_body(const ApiError& error) {
  return {{"error",
           {{"message", error.what()},
            {"type", error.status >= 500 ? "server_error" : "invalid_request_error"},
            {"param", error.param.empty() ? Json() : Json(error.param)},
            {"code", error.code}}}};
}

}  // namespace fathom::server
