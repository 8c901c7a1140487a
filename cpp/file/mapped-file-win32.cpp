// mapped-file-win32.cpp: Windows. The POSIX form is in mapped-file.cpp; each file is empty on the other's platform.
#ifdef _WIN32

#include "file/mapped-file.h"

#include "file/message.h"

#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>

namespace dqrelo {

static std::wstring wide(const std::string & utf8) {
    const int    n = MultiByteToWideChar(CP_UTF8, 0, utf8.data(), (int) utf8.size(), nullptr, 0);
    std::wstring out((size_t) n, L'\0');
    MultiByteToWideChar(CP_UTF8, 0, utf8.data(), (int) utf8.size(), &out[0], n);
    return out;
}

// Windows lets no program shorten or write a file that is mapped here: a copy needs no other form than a map.
std::unique_ptr<mapped_file> mapped_file::open(const std::string & path, mode, std::string & err) {
    HANDLE file = CreateFileW(wide(path).c_str(), GENERIC_READ, FILE_SHARE_READ, nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
    if (file == INVALID_HANDLE_VALUE) {
        err = message("cannot be opened: system error %lu", GetLastError());
        return nullptr;
    }
    LARGE_INTEGER n_bytes;
    if (!GetFileSizeEx(file, &n_bytes) || n_bytes.QuadPart == 0) {
        err = "is empty";
        CloseHandle(file);
        return nullptr;
    }
    HANDLE mapping = CreateFileMappingW(file, nullptr, PAGE_READONLY, 0, 0, nullptr);
    void * data    = mapping ? MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0) : nullptr;
    if (data == nullptr) {
        err = message("cannot be mapped: system error %lu", GetLastError());
        if (mapping) {
            CloseHandle(mapping);
        }
        CloseHandle(file);
        return nullptr;
    }
    CloseHandle(file); // The mapping keeps the file.

    std::unique_ptr<mapped_file> out(new mapped_file());
    out->data_    = (const uint8_t *) data;
    out->n_bytes_ = (size_t) n_bytes.QuadPart;
    out->handle_  = mapping;
    return out;
}

mapped_file::~mapped_file() {
    UnmapViewOfFile(data_);
    CloseHandle((HANDLE) handle_);
}

// A map has its pages already.
void mapped_file::expect_whole(const is_decoding_fn &, bool) {}

// Windows reads no further ahead than a page fault needs.
void mapped_file::expect_random_access() const {}

bool mapped_file::fetch(size_t n_bytes, const is_aborted_fn & is_aborted, std::string & err) {
    constexpr size_t piece = (size_t) 4 << 20;
    for (; n_fetched_ < n_bytes && n_fetched_ < n_bytes_; n_fetched_ += piece) {
        if (is_aborted && is_aborted()) {
            err = "was not read to its end: nobody waits for it any more";
            return false;
        }
        fetch_piece(n_fetched_, n_bytes_ - n_fetched_ < piece ? n_bytes_ - n_fetched_ : piece, err);
    }
    return true;
}

bool mapped_file::fetch_piece(size_t offset_bytes, size_t n_bytes, std::string &) {
    constexpr size_t page = 4096;
    volatile uint8_t sink = 0;
    for (size_t at = offset_bytes / page * page; at < offset_bytes + n_bytes; at += page) {
        sink = data_[at];
    }
    (void) sink;
    return true;
}

// Pages that were never locked leave the working set.
bool mapped_file::begin_changes() {
    return false;
}

void mapped_file::end_changes() {}

void mapped_file::discard(size_t offset_bytes, size_t n_bytes) const {
    VirtualUnlock(const_cast<uint8_t *>(data_) + offset_bytes, n_bytes);
}

} // namespace dqrelo

#endif
