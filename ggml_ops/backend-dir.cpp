// backend-dir.cpp: ggml_backend_load_all() in the place of ggml's own, which also takes what lies in the working directory: a library that
// a download left there would be run.

#include "ggml-backend.h"

#include <string>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif

// Returns the directory of the library that this file is linked into, in UTF-8, or an empty string where the system does not say.
static std::string own_directory() {
#ifdef _WIN32
    HMODULE module = nullptr;
    GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT, (LPCWSTR) &own_directory,
                       &module);
    std::wstring wide(32768, L'\0');
    wide.resize(GetModuleFileNameW(module, &wide[0], (DWORD) wide.size()));
    std::string path(wide.size() * 3, '\0');
    path.resize(WideCharToMultiByte(CP_UTF8, 0, wide.data(), (int) wide.size(), &path[0], (int) path.size(), nullptr, nullptr));
#else
    Dl_info           info = {};
    const std::string path = dladdr((const void *) &own_directory, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
#endif
    const size_t end = path.find_last_of("/\\");
    return end == std::string::npos ? "" : path.substr(0, end);
}

// Loads the backends beside ggml's own library, and what GGML_BACKEND_PATH names.
void ggml_backend_load_all() {
    const std::string directory = own_directory();
    if (!directory.empty()) {
        ggml_backend_load_all_from_path(directory.c_str());
    }
}
