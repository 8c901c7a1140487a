# What the wheel holds beside the Python files: one install component, self-contained and relocatable.
#
#   _core.*.so   bin/llama-*   lib/lib*.so   _vendor/{gguf,conversion,convert_{hf,lora}_to_gguf.py}   demo/tiny   licences
if (APPLE)
    set(origin "@loader_path")
else()
    set(origin "$ORIGIN")
endif()

# A wheel holds no symbolic links, so each library gets one name.
function(dqrelo_install_library target)
    get_target_property(type ${target} TYPE)
    if (NOT type MATCHES "^(SHARED|MODULE)_LIBRARY$") # A module is a backend that is loaded at run time.
        return()
    endif()
    set_property(TARGET ${target} PROPERTY VERSION)
    set_property(TARGET ${target} PROPERTY SOVERSION)
    set_property(TARGET ${target} PROPERTY PUBLIC_HEADER)
    set_property(TARGET ${target} PROPERTY PRIVATE_HEADER)
    set_target_properties(${target} PROPERTIES INSTALL_RPATH "${origin}")
    # On Windows libraries lie beside the programs; a module is none of its RUNTIME files.
    install(TARGETS ${target}
        LIBRARY DESTINATION $<IF:$<PLATFORM_ID:Windows>,bin,lib> COMPONENT dqrelo
        RUNTIME DESTINATION bin COMPONENT dqrelo)
endfunction()

foreach (target ggml ggml-base ${GGML_AVAILABLE_BACKENDS} llama llama-common mtmd)
    dqrelo_install_library(${target})
endforeach()
if (TARGET ggml-cuda AND NOT WIN32)
    # The rpath leads to the folder beside this package in site-packages where PyPI's libraries of CUDA 13 lie.
    set_target_properties(ggml-cuda PROPERTIES INSTALL_RPATH "${origin};${origin}/../../nvidia/cu13/lib")
endif()
foreach (program ${DQRELO_PROGRAMS} dqrelo-op-check)
    if (TARGET ${program}-impl)
        dqrelo_install_library(${program}-impl)
    endif()
    set_target_properties(${program} PROPERTIES INSTALL_RPATH "${origin}/../lib")
    install(TARGETS ${program} RUNTIME DESTINATION bin COMPONENT dqrelo)
endforeach()
foreach (module ${DQRELO_PYTHON_MODULES})
    set_target_properties(${module} PROPERTIES INSTALL_RPATH "${origin}/lib")
    install(TARGETS ${module} LIBRARY DESTINATION . COMPONENT dqrelo)
endforeach()

# The pair that dqrelo-demo converts and serves.
install(DIRECTORY examples/tiny DESTINATION demo COMPONENT dqrelo)

# Upstream's converter and its gguf package, from the same tree, with their licence.
install(DIRECTORY ${DQRELO_LLAMA_CPP_DIR}/conversion ${DQRELO_LLAMA_CPP_DIR}/gguf-py/gguf
    DESTINATION _vendor COMPONENT dqrelo
    FILES_MATCHING PATTERN "*.py" PATTERN "py.typed" PATTERN "__pycache__" EXCLUDE)
install(FILES ${DQRELO_LLAMA_CPP_DIR}/convert_hf_to_gguf.py ${DQRELO_LLAMA_CPP_DIR}/convert_lora_to_gguf.py DESTINATION _vendor COMPONENT dqrelo)
install(FILES ${DQRELO_LLAMA_CPP_DIR}/gguf-py/LICENSE DESTINATION _vendor/gguf COMPONENT dqrelo)
install(FILES ${DQRELO_LLAMA_CPP_DIR}/LICENSE DESTINATION _vendor/conversion COMPONENT dqrelo)
# The libraries and programs are llama.cpp's, with the libraries that it carries compiled in.
install(FILES ${DQRELO_LLAMA_CPP_DIR}/LICENSE DESTINATION licenses COMPONENT dqrelo RENAME LICENSE-llama.cpp)
file(GLOB_RECURSE licences RELATIVE ${DQRELO_LLAMA_CPP_DIR}/vendor ${DQRELO_LLAMA_CPP_DIR}/vendor/LICENSE*)
foreach (licence ${licences})
    get_filename_component(folder ${licence} DIRECTORY)
    string(REPLACE "/" "-" library ${folder})
    install(FILES ${DQRELO_LLAMA_CPP_DIR}/vendor/${licence} DESTINATION licenses COMPONENT dqrelo RENAME LICENSE-${library})
endforeach()
install(DIRECTORY ${DQRELO_LLAMA_CPP_DIR}/licenses/ DESTINATION licenses COMPONENT dqrelo)
