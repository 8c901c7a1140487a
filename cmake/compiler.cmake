# Enables C and C++, with one line in place of CMake's page where there is no compiler.
include(CheckLanguage)
foreach (language C CXX)
    check_language(${language})
    if (NOT CMAKE_${language}_COMPILER)
        message(FATAL_ERROR " no working ${language} compiler found: install one (Debian: apt-get install g++; macOS: xcode-select --install) or set CC and CXX")
    endif()
    enable_language(${language})
endforeach()
