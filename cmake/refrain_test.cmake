# Tests: refrain_add_test(NAME SOURCES a_test.cpp ... [LABELS ...] [LIBRARIES ...] [TIMEOUT seconds] [REMOTE]).
#
# Builds the program NAME from GoogleTest sources and registers it with ctest under that name. Every test carries the
# labels `unit` and `asan`; LABELS adds others: `tsan` for what starts threads; `fuzz` for what, in `make fuzz`, goes on
# for REFRAIN_FUZZ_SECONDS and is short without that variable. REMOTE: also registered as NAME_remote, which gets
# REFRAIN_TEST_DEVICE=remote: the CPU with memory that the host cannot reach (`unit` alone: what is different there is
# that an access out of reach faults by itself); and, where the CUDA plugin is built on a machine with a GPU, as
# NAME_cuda, which gets cuda:0. ctest reports a program as skipped when all its tests are.
# Tests run in the repository's root and get REFRAIN_BUILD and REFRAIN_MODELS in their environment.
if(PROJECT_IS_TOP_LEVEL AND REFRAIN_TESTS)
  enable_testing()
endif()

if(REFRAIN_MODELS)
  set(refrain_test_models "${REFRAIN_MODELS}")
elseif(IS_DIRECTORY "${PROJECT_SOURCE_DIR}/../shared/models")
  cmake_path(SET refrain_test_models NORMALIZE "${PROJECT_SOURCE_DIR}/../shared/models")
else()
  set(refrain_test_models "")
endif()

# The sanitizers of Clang 16 need their fixed memory map, which a layout randomised over many bits breaks.
set(refrain_test_launcher "")
if(REFRAIN_SANITIZE)
  execute_process(COMMAND setarch -R true RESULT_VARIABLE refrain_setarch_result OUTPUT_QUIET ERROR_QUIET)
  if(refrain_setarch_result EQUAL 0)
    set(refrain_test_launcher setarch -R)
  endif()
endif()

# What every test gets: folder, environment, limits. Also for tests that are no GoogleTest program. How long a campaign
# may take is for the caller of ctest to say (--timeout): `make fuzz` asks for a week.
function(refrain_test_properties name)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "" "TIMEOUT" "LABELS")
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
  endif()
  set(environment "REFRAIN_BUILD=${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
  if(refrain_test_models)
    list(APPEND environment "REFRAIN_MODELS=${refrain_test_models}")
  endif()
  list(APPEND environment "TSAN_OPTIONS=second_deadlock_stack=1"
       "UBSAN_OPTIONS=print_stacktrace=1")
  set_tests_properties(${name} PROPERTIES
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
    ENVIRONMENT "${environment}"
    LABELS "${ARG_LABELS}")
  if(NOT fuzz IN_LIST ARG_LABELS)
    set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT})
  endif()
endfunction()

# The same program on another device, as NAME_SUFFIX.
function(refrain_add_test_on name suffix device labels timeout)
  add_test(NAME ${name}_${suffix} COMMAND ${refrain_test_launcher} $<TARGET_FILE:${name}> --gtest_brief=1)
  refrain_test_properties(${name}_${suffix} LABELS ${labels} TIMEOUT ${timeout})
  set_property(TEST ${name}_${suffix} APPEND PROPERTY ENVIRONMENT "REFRAIN_TEST_DEVICE=${device}")
  set_tests_properties(${name}_${suffix} PROPERTIES SKIP_RETURN_CODE 77)
endfunction()

function(refrain_add_test name)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "REMOTE" "TIMEOUT" "SOURCES;LABELS;LIBRARIES")
  if(NOT ARG_SOURCES)
    message(FATAL_ERROR "refrain_add_test(${name}): no SOURCES")
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)  # a third of the time to build is in tests
  if(NOT TARGET refrain_test_main)
    add_library(refrain_test_main STATIC "${PROJECT_SOURCE_DIR}/tests/main.cpp")
    target_link_libraries(refrain_test_main PUBLIC GTest::gtest)
  endif()
  target_link_libraries(${name} PRIVATE refrain refrain_test_main ${ARG_LIBRARIES})
  add_test(NAME ${name} COMMAND ${refrain_test_launcher} $<TARGET_FILE:${name}> --gtest_brief=1)
  refrain_test_properties(${name} LABELS unit asan ${ARG_LABELS} TIMEOUT ${ARG_TIMEOUT})
  set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77)
  if(ARG_REMOTE)
    refrain_add_test_on(${name} remote remote unit "${ARG_TIMEOUT}")
    if(REFRAIN_CUDA AND EXISTS /dev/nvidiactl)
      refrain_add_test_on(${name} cuda cuda:0 cuda "${ARG_TIMEOUT}")
    endif()
  endif()
endfunction()
