# Runs a program with one planted fault, which must be found: cmake -DPROGRAM=... -DFAULT=... -DMESSAGE=REGEX -P test-emulator.cmake.
execute_process(COMMAND ${PROGRAM} ${FAULT} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output TIMEOUT 60)
if (output MATCHES "ThreadSanitizer: unexpected memory mapping")
    message("skipped: ThreadSanitizer cannot run here")
elseif (result EQUAL 0 OR NOT output MATCHES "${MESSAGE}")
    message(FATAL_ERROR "${FAULT}: expected a failure with '${MESSAGE}', got ${result}:\n${output}")
endif()
