# Short commands over CMake. `make demo` needs git, make and apt only; everything else is installed on the way.
#   make demo     a story, from nothing            make test     everything in release, then all tests
#   make build    library, program, examples       make asan     tests under AddressSanitizer and UBSan
#   make lint     format, includes, sizes, laws    make tsan     tests under ThreadSanitizer
#   make format   rewrites the C++ files           make fuzz     slow random campaigns
#   make tidy     clang-tidy on changed sources, or FOLDER=refrain/graph    make ops-page   docs/ops.md from headers
#   make install   library, public headers and program under PREFIX (default /usr/local); installs no packages
#   make cuda     the CUDA plugin, where nvcc is    make test-cuda    its tests, on a machine with a GPU
#   make mutants   small bugs that no test notices, in changed files, or FOLDER=refrain/graph (MUTANTS_SECONDS=600, BASE=revision)
#   make bench-dispatch   what the library costs beside the work, with oneTBB and OpenMP on the same graphs
# MODELS=folder   the larger test models (default: ../shared/models, if it exists)    JOBS=n    WERROR=ON

JOBS ?= $(shell nproc)
WERROR ?= OFF
PREFIX ?= /usr/local
FUZZ_SECONDS ?= 600
MUTANTS_SECONDS ?= 600

RELEASE := build/release
VENV := build/venv
MUTANTS_VENV := build/venv_mutants
LINT_VENV := build/venv_lint
MODELS_FLAG := $(if $(MODELS),-DREFRAIN_MODELS=$(abspath $(MODELS)),-DREFRAIN_MODELS=)
TEST_FLAGS := -DREFRAIN_TESTS=ON -DREFRAIN_PYTHON=$(abspath $(VENV))/bin/python $(MODELS_FLAG)
CXX_FILES = $(wildcard $(shell git ls-files --cached --others --exclude-standard -- '*.h' '*.cpp' '*.cu' '*.cuh'))

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

.PHONY: all setup setup-test setup-ci build demo test asan tsan cuda cuda-carry test-cuda lint tidy ops-page format fuzz mutants bench-dispatch clean install
all: build

setup:
	@tools/setup.sh build

setup-test: setup
	@tools/setup.sh test
	@tools/venv.sh $(VENV) tests/requirements.txt

$(MUTANTS_VENV): tools/mutants_requirements.txt | setup-test
	@tools/venv.sh $@ $<

setup-ci:
	@tools/setup.sh build test lint ci bench

# Configured once; the build itself configures again when a CMake file has changed. Tests come with `make test`.
$(RELEASE)/build.ninja: | setup
	@cmake --preset release -DREFRAIN_TESTS=OFF >&2

build: setup $(RELEASE)/build.ninja
	@cmake --build $(RELEASE) -j $(JOBS)

# The first build shows its progress, later ones only what goes wrong. All of it goes to stderr, the story to stdout.
demo: setup $(RELEASE)/build.ninja
	@cmake --build $(RELEASE) -j $(JOBS) --target refrain_cli \
	  $(if $(wildcard $(RELEASE)/bin/refrain),-- --quiet | sed '/^ninja: no work to do/d') >&2
	@echo >&2
	@$(RELEASE)/bin/refrain generate models/tales-qwen3-4bit -p "Once upon a time" --echo
	@echo >&2

test: setup-test $(MUTANTS_VENV)
	@cmake --preset release -DREFRAIN_WERROR=$(WERROR) $(TEST_FLAGS)
	@cmake --build $(RELEASE) -j $(JOBS)
	@tools/run_tests.sh $(RELEASE)

# Clang is the second compiler; asan builds everything, warnings as errors.
asan tsan: setup-ci setup-test
	@cmake --preset $@ $(TEST_FLAGS)
	@cmake --build build/$@ -j $(JOBS)
	@tools/run_tests.sh build/$@ -L '^$@$$'

# Builds for every GPU and runs on none: nvcc is enough.
cuda: setup
	@cmake --preset release -DREFRAIN_CUDA=ON -DREFRAIN_WERROR=$(WERROR)
	@cmake --build $(RELEASE) -j $(JOBS) --target refrain_cuda

# What the tests on a GPU need, in one folder, to be carried to a machine that has one.
cuda-carry: setup-test
	@cmake --preset release -DREFRAIN_CUDA=ON $(TEST_FLAGS)
	@cmake --build $(RELEASE) -j $(JOBS) --target refrain_cuda refrain_cuda_test refrain_cli ops_test conformance_test \
	  cuda_lost_test same_bits_test families_test replay_test step_test
	@tools/cuda_carry.sh $(RELEASE) build/cuda-carry

# On a machine that has what cuda-carry made: tools/test_cuda.sh build/cuda-carry
test-cuda: cuda-carry
	@tools/test_cuda.sh build/cuda-carry

lint:
	@tools/setup.sh lint
	@tools/venv.sh $(LINT_VENV) tools/lint_requirements.txt
	@$(LINT_VENV)/bin/ruff check --quiet
	@clang-format-16 --dry-run -Werror $(CXX_FILES)
	@python3 tools/check_includes.py
	@python3 tools/check_sizes.py
	@python3 tools/check_laws.py
	@python3 tools/make_ops_page.py --check

# clang-tidy on the sources that differ from BASE (default: main), or below FOLDER=refrain/graph. Minutes for the whole tree.
tidy: setup
	@tools/setup.sh tidy
	@test -f $(RELEASE)/compile_commands.json || cmake --preset release -DREFRAIN_TESTS=OFF >&2
	@files="$(if $(FOLDER),$$(git ls-files '$(FOLDER)/*.cpp'),$$(git diff --name-only --diff-filter=d $(or $(BASE),main) -- 'refrain/*.cpp' 'cli/*.cpp'))"; \
	  files=$$(grep -v '_\(test\|bench\)\.cpp$$' <<<"$$files" || true); \
	  test -z "$$files" || printf '%s\n' $$files | xargs -P $(JOBS) -n 4 clang-tidy-16 -p $(RELEASE) --quiet --extra-arg=-Wno-unknown-warning-option

# docs/ops.md from the headers of the ops.
ops-page:
	@python3 tools/make_ops_page.py

format:
	@tools/setup.sh lint
	@clang-format-16 -i $(CXX_FILES)

# Campaigns of random streams and damaged files: the tests labelled `fuzz` go on for as long as they are told.
fuzz: setup-ci setup-test
	@cmake --preset release -DREFRAIN_WERROR=$(WERROR) -DREFRAIN_FUZZERS=ON $(TEST_FLAGS)
	@cmake --build $(RELEASE) -j $(JOBS)
	@REFRAIN_FUZZ_SECONDS=$(FUZZ_SECONDS) tools/run_tests.sh $(RELEASE) -L '^fuzz$$' --timeout 604800

# Mutants in copies of the tree; what survives is printed and kept in build/mutants/report.txt.
mutants: setup-test $(MUTANTS_VENV)
	@$(MUTANTS_VENV)/bin/python tools/mutants.py --seconds $(MUTANTS_SECONDS) --jobs $(JOBS) $(if $(BASE),--base $(BASE)) \
	  $(patsubst %,--cmake=%,$(TEST_FLAGS)) $(FOLDER)

# Figures as lines `name value unit`. Peers that cannot be installed are left out, and the output says which.
bench-dispatch: setup
	@tools/setup.sh bench || true
	@cmake --preset release >&2
	@cmake --build $(RELEASE) -j $(JOBS) --target bench_dispatch bench_hazards bench_planning bench_step >&2
	@$(RELEASE)/bin/bench_dispatch
	@$(RELEASE)/bin/bench_hazards
	@$(RELEASE)/bin/bench_planning
	@$(RELEASE)/bin/bench_step

# Keeps the virtual environment, which depends on tests/requirements.txt only.
clean:
	@rm -rf build/release build/debug build/asan build/tsan

# The library and the program only. Installs no packages: what is missing, CMake names.
install:
	@test -f $(RELEASE)/build.ninja || cmake --preset release -DREFRAIN_TESTS=OFF >&2
	@cmake --build $(RELEASE) -j $(JOBS) --target refrain refrain_cli >&2
	@cmake --install $(RELEASE) --prefix $(PREFIX)
