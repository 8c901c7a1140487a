// delta-resolver.cpp: POSIX. Windows has no such sockets: delta-resolver-win32.cpp. Each file is empty on the other's platform.
#ifndef _WIN32

#include "delta-resolver.h"

#include "delta-ref.h"
#include "server-common.h"

#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

using clock_type = std::chrono::steady_clock;

static const int    ASK_PERIOD_MS = 100;  // between two looks whether anybody still waits
static const double GRACE_S       = 15.0; // The resolver ends what is late itself, and says so.
static const int    RETRY_AFTER_S = 2;

#ifdef MSG_NOSIGNAL
static const int SEND_FLAGS = MSG_DONTWAIT | MSG_NOSIGNAL;
#else
static const int SEND_FLAGS = MSG_DONTWAIT; // The program's HTTP server ignores the signal.
#endif

// One end of a pair of sockets, which is closed when this goes.
struct socket_end {
    int fd = -1;

    socket_end() = default;
    ~socket_end() { reset(); }
    socket_end(const socket_end &)             = delete;
    socket_end & operator=(const socket_end &) = delete;

    void reset() {
        if (fd >= 0) {
            close(fd);
        }
        fd = -1;
    }
};

[[noreturn]] static void fail_to_ask() {
    const bool is_over = errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN;
    throw server_delta_error(ERROR_TYPE_UNAVAILABLE,
                             is_over ? "the process that fetches addresses has ended. Start dqrelo-server again"
                                     : std::string("the process that fetches addresses cannot be asked: ") + strerror(errno));
}

// Sends a socket over another one, with a byte that carries it.
static void send_socket(int channel, int fd) {
    char   byte                                            = 0;
    iovec  bytes                                           = { &byte, 1 };
    msghdr message                                         = {};
    message.msg_iov                                        = &bytes;
    message.msg_iovlen                                     = 1;
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    message.msg_control                                    = control;
    message.msg_controllen                                 = sizeof(control);
    cmsghdr * header                                       = CMSG_FIRSTHDR(&message);
    header->cmsg_level                                     = SOL_SOCKET;
    header->cmsg_type                                      = SCM_RIGHTS;
    header->cmsg_len                                       = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(int));
    if (sendmsg(channel, &message, SEND_FLAGS) != 1) {
        fail_to_ask();
    }
}

// Asks, and leaves the end from which the answer comes in `mine`.
static void ask(int channel, const std::string & address, socket_end & mine) {
    int        ends[2] = { -1, -1 };
    const bool is_made = socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0;
    socket_end theirs;
    mine.fd   = ends[0];
    theirs.fd = ends[1];
    for (const int fd : ends) {
        if (!is_made || fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) {
            fail_to_ask();
        }
    }
    // The line fits into the empty buffer of a socket, and waits there for whoever gets the other end.
    const std::string line = address + "\n";
    if (send(mine.fd, line.data(), line.size(), SEND_FLAGS) != (ssize_t) line.size()) {
        fail_to_ask();
    }
    send_socket(channel, theirs.fd);
}

server_delta_resolver::~server_delta_resolver() {
    close(channel);
}

std::unique_ptr<server_delta_resolver> server_delta_resolver::inherited() {
    const char * text = std::getenv("DQRELO_RESOLVER");
    if (text == nullptr) {
        return nullptr;
    }
    char *       end       = nullptr;
    const long   fd        = std::strtol(text, &end, 10);
    const bool   has_both  = end != text && *end == ':';
    char *       end_s     = nullptr;
    const double seconds   = has_both ? std::strtod(end + 1, &end_s) : 0.0;
    sockaddr     name      = {};
    socklen_t    n_name    = sizeof(name);
    const bool   is_socket = has_both && *end_s == '\0' && seconds >= 1.0 && seconds <= 86400.0 && fd > 2 && fd <= INT_MAX &&
                             getsockname((int) fd, &name, &n_name) == 0 && name.sa_family == AF_UNIX;
    if (!is_socket || fcntl((int) fd, F_SETFD, FD_CLOEXEC) != 0) {
        throw std::invalid_argument("DQRELO_RESOLVER: expected what dqrelo-server sets with --load-from. Start the server by that command");
    }
    return std::make_unique<server_delta_resolver>((int) fd, seconds);
}

// Appends what has come to `answer`. False at its end.
static bool receive(const socket_end & from, std::string & answer) {
    char          bytes[4096];
    const ssize_t n = recv(from.fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (n > 0) {
        answer.append(bytes, (size_t) n);
    }
    const bool comes_later = n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
    return (n > 0 || comes_later) && answer.size() <= SERVER_DELTA_ANSWER_MAX;
}

server_delta_fetched server_delta_resolver::resolve(const std::string & address, const server_should_stop & should_stop) const {
    server_delta_check_address(address); // A second line would be another question.
    const auto deadline =
        clock_type::now() + std::chrono::duration_cast<clock_type::duration>(std::chrono::duration<double>(timeout_s + GRACE_S));
    socket_end mine; // When it closes, the resolver drops what it was doing for it.
    ask(channel, address, mine);
    std::string answer;
    while (true) {
        pollfd    waiting = { mine.fd, POLLIN, 0 };
        const int n       = poll(&waiting, 1, ASK_PERIOD_MS);
        if (n > 0 && !receive(mine, answer)) {
            break;
        }
        if (is_stopping) {
            throw server_delta_error(ERROR_TYPE_UNAVAILABLE, "the server is shutting down");
        }
        if (should_stop && should_stop()) {
            throw server_delta_error(ERROR_TYPE_UNAVAILABLE, "the client has gone");
        }
        if (clock_type::now() > deadline) {
            throw server_delta_error(SERVER_DELTA_ERROR_LATE, "the process that fetches addresses does not answer");
        }
    }
    if (answer.empty()) {
        throw server_delta_error(ERROR_TYPE_UNAVAILABLE,
                                 "the process that fetches addresses ended meanwhile. What is here already is kept; try again",
                                 RETRY_AFTER_S);
    }
    return server_delta_read_answer(answer);
}

#endif
