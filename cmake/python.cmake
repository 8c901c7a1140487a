# Finds what the native module dqrelo_gguf._core is built with: this Python and its pybind11.
find_package(Python 3.11 COMPONENTS Interpreter Development.Module)
if (NOT Python_Development.Module_FOUND)
    message(FATAL_ERROR " no headers of Python 3.11 or newer found: install them (Debian: apt-get install python3-dev), or build with -DDQRELO_BUILD_PYTHON=OFF")
endif()
execute_process(
    COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
    OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if (NOT pybind11_DIR)
    message(FATAL_ERROR " pybind11 not found: ${Python_EXECUTABLE} -m pip install pybind11, or build with -DDQRELO_BUILD_PYTHON=OFF")
endif()
