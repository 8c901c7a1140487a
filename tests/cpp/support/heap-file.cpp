// heap-file.cpp: mapped_file on the heap, for sanitized builds. Behind a mapping the rest of the last page is readable; behind this exact
// allocation AddressSanitizer sees every byte read too many.
#include "file/mapped-file.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace dqrelo {

std::unique_ptr<mapped_file> mapped_file::open(const std::string & path, mode, std::string & err) {
    FILE * in = fopen(path.c_str(), "rb");
    if (in == nullptr) {
        err = "no such file or directory";
        return nullptr;
    }
    std::string bytes;
    char        part[4096];
    for (size_t n = fread(part, 1, sizeof(part), in); n > 0; n = fread(part, 1, sizeof(part), in)) {
        bytes.append(part, n);
    }
    fclose(in);

    void * data = nullptr;
    if (bytes.empty() || posix_memalign(&data, 64, bytes.size()) != 0) {
        err = "is empty";
        return nullptr;
    }
    memcpy(data, bytes.data(), bytes.size());

    std::unique_ptr<mapped_file> file(new mapped_file());
    file->data_    = (const uint8_t *) data;
    file->n_bytes_ = bytes.size();
    return file;
}

mapped_file::~mapped_file() {
    free((void *) data_);
}

void mapped_file::expect_whole(const is_decoding_fn &, bool) {}

void mapped_file::expect_random_access() const {}

bool mapped_file::fetch(size_t, const is_aborted_fn &, std::string &) {
    return true;
}

bool mapped_file::begin_changes() {
    return true;
}

void mapped_file::end_changes() {}

void mapped_file::discard(size_t, size_t) const {}

} // namespace dqrelo
