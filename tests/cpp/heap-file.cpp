// heap-file.cpp: mapped_file on the heap, for sanitized builds. Behind a mapping the rest of the last page is readable; behind this exact allocation
// AddressSanitizer sees every byte read too many.
#include "mapped-file.h"

#include <cstdio>
#include <cstdlib>

namespace dqrelo {

std::unique_ptr<mapped_file> mapped_file::open(const std::string & path, std::string & err) {
    FILE * in = fopen(path.c_str(), "rb");
    if (in == nullptr) {
        err = "cannot be opened";
        return nullptr;
    }
    fseek(in, 0, SEEK_END);
    const size_t n_bytes = (size_t) ftell(in);
    rewind(in);

    void * data = nullptr;
    if (n_bytes == 0 || posix_memalign(&data, 64, n_bytes) != 0 || fread(data, 1, n_bytes, in) != n_bytes) {
        err = n_bytes == 0 ? "is empty" : "cannot be read";
        free(data);
        fclose(in);
        return nullptr;
    }
    fclose(in);

    std::unique_ptr<mapped_file> file(new mapped_file());
    file->data_    = (const uint8_t *) data;
    file->n_bytes_ = n_bytes;
    return file;
}

mapped_file::~mapped_file() {
    free((void *) data_);
}

void mapped_file::expect_random_access() const {}

void mapped_file::prefault(size_t, size_t) const {}

} // namespace dqrelo
