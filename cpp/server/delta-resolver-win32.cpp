// delta-resolver-win32.cpp: Windows, where dqrelo-server refuses --load-from.
#ifdef _WIN32

#include "delta-resolver.h"

#include "delta-ref.h"
#include "server-common.h"

server_delta_resolver::~server_delta_resolver() = default;

std::unique_ptr<server_delta_resolver> server_delta_resolver::inherited() {
    return nullptr;
}

server_delta_fetched server_delta_resolver::resolve(const std::string &, const server_should_stop &) const {
    throw server_delta_error(ERROR_TYPE_NOT_SUPPORTED, "addresses are not loaded on Windows");
}

#endif
