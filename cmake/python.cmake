# Finds what the native module dqrelo_gguf._core is built with: pybind11, and this Python or the headers of several.
set(DQRELO_PYTHON_INCLUDES "" CACHE STRING "folders with Python.h: a native module for each of these Pythons in place of this one's (Linux)")

if (DQRELO_PYTHON_INCLUDES)
    find_package(Python 3.11 COMPONENTS Interpreter)
    set(PYBIND11_NOPYTHON ON) # Headers are all that a module needs; nothing of these Pythons is run or linked.
else()
    find_package(Python 3.11 COMPONENTS Interpreter Development.Module)
    if (NOT Python_Development.Module_FOUND)
        message(FATAL_ERROR " no headers of Python 3.11 or newer found: install them (Debian: apt-get install python3-dev), or build with -DDQRELO_BUILD_PYTHON=OFF")
    endif()
    set(PYBIND11_FINDPYTHON ON)
endif()
execute_process(
    COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir
    OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if (NOT pybind11_DIR)
    message(FATAL_ERROR " pybind11 not found: ${Python_EXECUTABLE} -m pip install pybind11, or build with -DDQRELO_BUILD_PYTHON=OFF")
endif()

# dqrelo_module_of(<include> <source>...): adds the native module for the Python whose Python.h lies in <include>, and sets `target` to its name.
function(dqrelo_module_of include)
    if (NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
        message(FATAL_ERROR " DQRELO_PYTHON_INCLUDES: the names of modules are known for Linux only: build a wheel for each Python")
    endif()
    if (NOT EXISTS ${include}/Python.h OR NOT EXISTS ${include}/patchlevel.h)
        message(FATAL_ERROR " DQRELO_PYTHON_INCLUDES: ${include} has no Python.h. Give the folder that sysconfig.get_path('include') names")
    endif()
    file(STRINGS ${include}/patchlevel.h minor REGEX "define PY_MINOR_VERSION")
    string(REGEX REPLACE "[^0-9]" "" minor "${minor}")
    set(target _core-3.${minor})
    add_library(${target} MODULE ${ARGN})
    target_link_libraries(${target} PRIVATE pybind11::headers)
    target_include_directories(${target} SYSTEM PRIVATE ${include})
    # Debian's pyconfig.h includes another one, from the folder above. There may be another C library's headers, too: those of the compiler's own
    # come first, since its library is the one that is linked.
    get_filename_component(root ${include} DIRECTORY)
    target_compile_options(${target} PRIVATE "SHELL:-idirafter ${root}")
    set_target_properties(${target} PROPERTIES PREFIX "" SUFFIX ".cpython-3${minor}-${CMAKE_SYSTEM_PROCESSOR}-linux-gnu.so" OUTPUT_NAME _core
        CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
    set(target ${target} PARENT_SCOPE)
endfunction()
