# make setup | build | run | test | format. Each brings what it needs; a second call re-does nothing.
JOBS := $(shell nproc)
HOST ?= 127.0.0.1
PORT ?= 8080
MODEL ?= models/nano

NPM_STAMP := tests/clients/node_modules/.package-lock.json

.PHONY: setup setup-build build build-tests build-sanitize run test test-threads test-memory format
.DEFAULT_GOAL := build

setup: $(NPM_STAMP)
	@scripts/setup.sh build test

setup-build:
	@scripts/setup.sh build

$(NPM_STAMP): tests/clients/package.json tests/clients/package-lock.json
	@scripts/setup.sh build test
	cd tests/clients && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

build: setup-build
	@cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release --log-level=WARNING
	cmake --build build -j $(JOBS) --target fathom

build-tests: setup build
	cmake --build build -j $(JOBS)

build-sanitize: setup
	@cmake -S . -B build-sanitize -G Ninja -DFATHOM_SANITIZE=ON --log-level=WARNING
	cmake --build build-sanitize -j $(JOBS)

run: build
	build/fathom serve --model $(MODEL) --host $(HOST) --port $(PORT)

# The tests of build/ include those of build-sanitize/: one run, one summary.
test: build-tests build-sanitize
	ctest --test-dir build -j $(JOBS) --output-on-failure

# GCC 12 takes what its own regular expressions hold for uninitialized under a sanitizer.
NO_FALSE_ALARM := -Wno-maybe-uninitialized

# Parallel loops, the engine and its schedule under ThreadSanitizer, which does not stand functions
# compiled twice.
test-threads: setup
	@cmake -S . -B build-threads -G Ninja -DCMAKE_CXX_FLAGS="-fsanitize=thread $(NO_FALSE_ALARM)" \
	  -DFATHOM_KERNEL_ARCH=x86-64 --log-level=WARNING
	cmake --build build-threads -j $(JOBS) --target base_test engine_test
	build-threads/src/base/base_test --gtest_filter='Parallel.*'
	build-threads/src/engine/engine_test

# The engine, and the whole program under the clients' tests, under AddressSanitizer; whatever is
# still allocated at the end is an error. LibTorch is not instrumented, but its allocations are seen.
test-memory: setup
	@cmake -S . -B build-memory -G Ninja -DCMAKE_CXX_FLAGS="-fsanitize=address $(NO_FALSE_ALARM)" \
	  --log-level=WARNING
	cmake --build build-memory -j $(JOBS) --target engine_test server_test fathom
	build-memory/src/engine/engine_test
	build-memory/src/server/server_test
	FATHOM_BINARY=$(CURDIR)/build-memory/fathom ASAN_OPTIONS=quarantine_size_mb=16 \
	  node --test $(addprefix tests/clients/,errors.test.mjs faults.test.mjs load.test.mjs \
	  process.test.mjs)

format:
	@scripts/setup.sh test
	@scripts/format.sh
