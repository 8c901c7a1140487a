#include "delta-reader.h"

#include "delta-io.h"

// How often a file is read that is another one, or another's content, once it was read: someone is busy replacing it.
static const int N_READS_MAX = 3;

// Serves as dqrelo_file_params::abort_callback.
static bool show_life(void * data) {
    return ((server_delta_life *) data)->show();
}

// Serves as decode_callback of dqrelo_file_params and dqrelo_load_params.
static bool is_decoding(void * data) {
    return *(const std::atomic<bool> *) data;
}

template <typename P>
static void pace(P & params, const server_delta_decoding & decoding) {
    params.decode_callback      = is_decoding;
    params.decode_callback_data = (void *) decoding.get();
}

void server_delta_pace(dqrelo_load_params & params, const server_delta_decoding & decoding) {
    pace(params, decoding);
}

static server_delta_reading read(const std::string & path, dqrelo_file_params params, const server_delta_decoding & decoding,
                                 server_delta_life & life) {
    params.abort_callback      = show_life;
    params.abort_callback_data = &life;
    pace(params, decoding);
    server_delta_reading reading;
    for (int i = 0; i < N_READS_MAX; i++) {
        char text[1024] = "";
        reading.stamp   = server_delta_stamp::of(path);
        reading.file.reset(dqrelo_file_open(path.c_str(), params, text, sizeof(text)));
        reading.err = text;
        if (life.show() || reading.stamp == server_delta_stamp::of(path)) {
            return reading;
        }
    }
    reading.file.reset();
    reading.err = path + ": changes again and again while it is read. Put a new file in place by renaming it";
    return reading;
}

server_delta_reading server_delta_read_file(const std::string & path, const dqrelo_file_params & params,
                                            const server_delta_decoding & decoding, const std::function<bool()> & is_wanted) {
    const auto io     = [path, params, decoding](server_delta_life & life) { return read(path, params, decoding, life); };
    auto       result = server_delta_do_io<server_delta_reading>(path, io, is_wanted);
    if (result.value) {
        return std::move(*result.value);
    }
    server_delta_reading reading;
    reading.err       = result.err;
    reading.is_silent = result.is_silent;
    return reading;
}
