# Every dependency is a Debian package; docs/DEPENDENCIES.md says why each was chosen.
find_package(Threads REQUIRED)
find_package(GTest REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(fmt REQUIRED)
find_package(OpenSSL REQUIRED COMPONENTS Crypto)
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)

if(NOT FATHOM_SANITIZE)
  find_package(CLI11 REQUIRED)
  pkg_check_modules(HTTPLIB REQUIRED IMPORTED_TARGET cpp-httplib)
  find_package(Torch REQUIRED)
  find_package(Gloo REQUIRED)  # headers of what LibTorch's c10d speaks through
  # As SYSTEM, so that -Werror judges only this project.
  add_library(torch_base INTERFACE)
  target_include_directories(torch_base SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
  target_link_libraries(torch_base INTERFACE ${TORCH_LIBRARIES})
endif()
