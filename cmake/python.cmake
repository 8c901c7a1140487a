# The native module dqrelo_gguf._core, glue over the C API.
find_package(Python 3.11 COMPONENTS Interpreter Development.Module REQUIRED)
execute_process(
    COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
    OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
find_package(pybind11 CONFIG QUIET)
if (NOT pybind11_FOUND)
    message(FATAL_ERROR " pybind11 not found for ${Python_EXECUTABLE}: ${Python_EXECUTABLE} -m pip install pybind11, or -DDQRELO_BUILD_PYTHON=OFF")
endif()
pybind11_add_module(_core cpp/bindings.cpp)
target_link_libraries(_core PRIVATE llama)
target_compile_features(_core PRIVATE cxx_std_17)
