// What the process that fetches addresses answers, and how long the server waits for it. A thread is that process.
#undef NDEBUG
#include "delta-address.h"
#include "delta-ref.h"
#include "delta-resolver.h"
#include "server-common.h"

#include <cassert>
#include <chrono>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

static const int NO_ERROR = -1;

// The type of the error that a call ends with.
static int error_of(const std::function<void()> & call) {
    try {
        call();
    } catch (const server_delta_error & e) {
        assert(*e.what() != '\0' && strchr(e.what(), '\n') == nullptr);
        return e.type;
    }
    return NO_ERROR;
}

static int error_of_answer(const std::string & answer) {
    return error_of([&] { server_delta_read_answer(answer); });
}

//
// answers
//

static void test_a_file() {
    const auto fetched = server_delta_read_answer("200\n/cache/\xc3\xbc.dq.gguf\nhf://o/r/x@0123\n");
    assert(fetched.path == "/cache/\xc3\xbc.dq.gguf" && fetched.address == "hf://o/r/x@0123");
}

static void test_refusals() {
    assert(error_of_answer("400\nwhy\n") == ERROR_TYPE_INVALID_REQUEST);
    assert(error_of_answer("403\nwhy\n") == ERROR_TYPE_PERMISSION);
    assert(error_of_answer("404\nwhy\n") == ERROR_TYPE_NOT_FOUND);
    assert(error_of_answer("413\nwhy\n") == SERVER_DELTA_ERROR_TOO_LARGE);
    assert(error_of_answer("502\nwhy\n") == SERVER_DELTA_ERROR_SOURCE);
    assert(error_of_answer("503\nwhy\n") == ERROR_TYPE_UNAVAILABLE);
    assert(error_of_answer("504\nwhy\n") == SERVER_DELTA_ERROR_LATE);
}

static void test_answers_that_are_none() {
    for (const std::string & answer : {
             std::string(),
             std::string("\n"),
             std::string("200"),
             std::string("200\n"),
             std::string("200\n/path\n"),
             std::string("200\n/path\naddress"),
             std::string("200\n/path\naddress\nmore\n"),
             std::string("200\npath\naddress\n"),
             std::string("200\n\naddress\n"),
             std::string("200\n/path\n\n"),
             std::string("200\n/pa\0th\naddress\n", 19),
             std::string("200\n/path\naddr\x1b[ess\n"),
             std::string("200\r\n/path\r\naddress\r\n"),
             std::string("0200\n/path\naddress\n"),
             std::string("200 \n/path\naddress\n"),
             std::string("403\n"),
             std::string("403\nwhy"),
             std::string("403\nwhy\nmore\n"),
             std::string("401\nwhy\n"),
             std::string("500\nwhy\n"),
             std::string("99999999999999999999\nwhy\n"),
             "403\n" + std::string(SERVER_DELTA_ANSWER_MAX, 'x') + "\n",
         }) {
        assert(error_of_answer(answer) == SERVER_DELTA_ERROR_SOURCE);
    }
}

// Bytes at random, most of them near an answer, never do more than to be refused.
static void test_hostile_bytes() {
    std::mt19937                            random(1);
    const std::string                       good = "200\n/path/of/a/file.dq.gguf\nhf://owner/repo/file.dq.gguf@0123\n";
    std::uniform_int_distribution<uint32_t> any;
    for (int i = 0; i < 20000; i++) {
        std::string answer = good.substr(0, any(random) % (good.size() + 1));
        for (uint32_t n = any(random) % 4; n > 0 && !answer.empty(); n--) {
            answer[any(random) % answer.size()] = (char) any(random);
        }
        const int type = error_of_answer(answer);
        assert(type == NO_ERROR || type == SERVER_DELTA_ERROR_SOURCE);
    }
}

static void test_addresses() {
    assert(server_delta_is_address("hf://o/r") && server_delta_is_address("a+b.c-1://"));
    for (const char * text : { "", "://x", "hf:/o/r", "/hf://o", "h f://o", "dir/a://b" }) {
        assert(!server_delta_is_address(text));
        assert(error_of([&] { server_delta_check_address(text); }) == ERROR_TYPE_INVALID_REQUEST);
    }
    for (const std::string & text : { std::string("hf://o\n200"), std::string("hf://o\0", 7), "hf://" + std::string(4092, 'x') }) {
        assert(error_of([&] { server_delta_check_address(text); }) == ERROR_TYPE_INVALID_REQUEST);
    }
    server_delta_check_address("hf://" + std::string(4091, 'x'));
    assert(server_delta_shown_address("https://user:secret@host/?secret") == "https://...");
    assert(server_delta_shown_address(std::string(1000, 'x') + "://").size() < 30);
}

//
// waiting
//

// Takes the socket of a question, and its line; -1 when the channel is closed.
static int take_question(int channel, std::string & line) {
    char                  byte                             = 0;
    iovec                 bytes                            = { &byte, 1 };
    msghdr                message                          = {};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    message.msg_iov                                        = &bytes;
    message.msg_iovlen                                     = 1;
    message.msg_control                                    = control;
    message.msg_controllen                                 = sizeof(control);
    if (recvmsg(channel, &message, 0) != 1) {
        return -1;
    }
    int fd = -1;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
    line.clear();
    for (char ch; recv(fd, &ch, 1, 0) == 1 && ch != '\n';) {
        line += ch;
    }
    return fd;
}

// A resolver whose other end does `answer` with the first question.
struct fixture {
    explicit fixture(const std::function<void(int, const std::string &)> & answer, double timeout_s = 60.0) {
        int ends[2];
        assert(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
        resolver = std::make_unique<server_delta_resolver>(ends[0], timeout_s);
        thread   = std::thread([theirs = ends[1], answer] {
            std::string line;
            const int   fd = take_question(theirs, line);
            close(theirs);
            if (fd >= 0) {
                answer(fd, line);
                close(fd);
            }
        });
    }

    ~fixture() {
        resolver.reset();
        thread.join();
    }

    std::unique_ptr<server_delta_resolver> resolver;
    std::thread                            thread;
};

static void say(int fd, const std::string & text) {
    assert(send(fd, text.data(), text.size(), MSG_NOSIGNAL) == (ssize_t) text.size());
}

// Waits until the other end is closed.
static void wait_for_end(int fd) {
    char ch;
    while (recv(fd, &ch, 1, 0) > 0) {
    }
}

static void test_an_answer_in_pieces() {
    const fixture f([](int fd, const std::string & line) {
        assert(line == "hf://o/r");
        for (const char * piece : { "20", "0\n/pa", "th\naddress", "\n" }) {
            say(fd, piece);
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
    });
    assert(f.resolver->resolve("hf://o/r", nullptr).path == "/path");
    // Its process is gone by then, or goes before it answers.
    assert(error_of([&] { f.resolver->resolve("hf://o/r", nullptr); }) == ERROR_TYPE_UNAVAILABLE);
}

static void test_no_answer() {
    const fixture f([](int, const std::string &) {});
    assert(error_of([&] { f.resolver->resolve("hf://o/r", nullptr); }) == ERROR_TYPE_UNAVAILABLE);
}

static void test_an_answer_without_end() {
    const fixture f([](int fd, const std::string &) {
        while (send(fd, "xxxxxxxx", 8, MSG_NOSIGNAL) > 0) {
        }
    });
    assert(error_of([&] { f.resolver->resolve("hf://o/r", nullptr); }) == SERVER_DELTA_ERROR_SOURCE);
}

static void test_silence() {
    const fixture f([](int fd, const std::string &) { wait_for_end(fd); }, -14.8); // So 0.2 s are left.
    assert(error_of([&] { f.resolver->resolve("hf://o/r", nullptr); }) == SERVER_DELTA_ERROR_LATE);
}

static void test_a_client_that_leaves() {
    const fixture f([](int fd, const std::string &) { wait_for_end(fd); });
    int           n_asked = 0;
    assert(error_of([&] { f.resolver->resolve("hf://o/r", [&] { return ++n_asked > 1; }); }) == ERROR_TYPE_UNAVAILABLE);
    assert(n_asked == 2);
}

static void test_a_server_that_stops() {
    const fixture f([](int fd, const std::string &) { wait_for_end(fd); });
    std::thread   stopper([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        f.resolver->stop();
    });
    assert(error_of([&] { f.resolver->resolve("hf://o/r", nullptr); }) == ERROR_TYPE_UNAVAILABLE);
    stopper.join();
}

static void test_what_is_no_address_is_not_asked() {
    const fixture f([](int, const std::string &) { assert(false); });
    assert(error_of([&] { f.resolver->resolve("hf://o\nhf://p", nullptr); }) == ERROR_TYPE_INVALID_REQUEST);
    assert(error_of([&] { f.resolver->resolve("/etc/passwd", nullptr); }) == ERROR_TYPE_INVALID_REQUEST);
}

int main() {
    test_a_file();
    test_refusals();
    test_answers_that_are_none();
    test_hostile_bytes();
    test_addresses();
    test_an_answer_in_pieces();
    test_no_answer();
    test_an_answer_without_end();
    test_silence();
    test_a_client_that_leaves();
    test_a_server_that_stops();
    test_what_is_no_address_is_not_asked();
    return 0;
}
