# chapter(NAME SOURCES a.cpp ... [TESTS a_test.cpp ...] [LINK libs...] [TEST_LINK libs...])
# One folder of src/: a static library fathom_NAME and, from the tests beside the code, NAME_test.
# File lists are explicit, so that a file that nobody listed is noticed in review.
function(chapter name)
  cmake_parse_arguments(CHAPTER "" "" "SOURCES;TESTS;LINK;TEST_LINK" ${ARGN})
  set(library fathom_${name})
  add_library(${library} STATIC ${CHAPTER_SOURCES})
  target_include_directories(${library} PUBLIC ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(${library} PUBLIC ${CHAPTER_LINK})
  house_rules(${library})
  if(CHAPTER_TESTS)
    chapter_test(${name}_test SOURCES ${CHAPTER_TESTS} LINK ${library} ${CHAPTER_TEST_LINK})
  endif()
endfunction()

# chapter_test(NAME SOURCES ... LINK ...): a GoogleTest program, each case its own ctest entry.
function(chapter_test name)
  cmake_parse_arguments(TEST "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${TEST_SOURCES})
  target_link_libraries(${name} PRIVATE ${TEST_LINK} GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE FATHOM_ROOT="${PROJECT_SOURCE_DIR}")
  house_rules(${name})
  include(GoogleTest)
  set(prefix "")
  if(FATHOM_SANITIZE)
    set(prefix "sanitize.")
  endif()
  gtest_discover_tests(${name} TEST_PREFIX "${prefix}" DISCOVERY_MODE PRE_TEST
                       NO_PRETTY_VALUES DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 300)
endfunction()

function(house_rules target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Werror -Wno-psabi)
  if(FATHOM_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=address,undefined
                                             -fno-sanitize-recover=undefined)
    target_link_options(${target} PUBLIC -fsanitize=address,undefined)
  endif()
endfunction()
