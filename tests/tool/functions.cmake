# What the tests of the tool share.
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})

function(run)  # run(ARGS...) sets `out`; fails the test unless the exit code is 0
  execute_process(COMMAND ${TOOL} ${ARGN} OUTPUT_VARIABLE text ERROR_VARIABLE error RESULT_VARIABLE code)
  if(NOT code EQUAL 0)
    message(FATAL_ERROR "offramp ${ARGN}: exit code ${code}\n${error}")
  endif()
  set(out "${text}" PARENT_SCOPE)
endfunction()

function(expect_key)  # every path of keys must lead to a value
  string(JSON value ERROR_VARIABLE error GET "${out}" ${ARGN})
  if(error)
    message(FATAL_ERROR "key ${ARGN}: ${error}\n${out}")
  endif()
endfunction()

function(expect_error)  # one clear line and a non-zero exit code
  execute_process(COMMAND ${TOOL} ${ARGN} OUTPUT_VARIABLE text ERROR_VARIABLE error RESULT_VARIABLE code)
  if(code EQUAL 0 OR NOT error MATCHES "[^\n]+")
    message(FATAL_ERROR "offramp ${ARGN} should fail with a message, exit code ${code}: ${error}")
  endif()
endfunction()

set(DATASET "fashion-mnist:${DATA}:test[0:300]")
