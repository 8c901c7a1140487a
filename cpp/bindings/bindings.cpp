// bindings.cpp: the native module dqrelo_gguf._core. Glue only: arguments are checked and batches are run in session.cpp.
#include "log.h"
#include "machine.h"
#include "row-codes.h"
#include "session.h"

#include "ggml-backend.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace py = pybind11;

using token_array = py::array_t<llama_token, py::array::c_style | py::array::forcecast>;
using blend_list  = std::vector<std::vector<std::pair<std::shared_ptr<loaded_delta>, float>>>; // for each sequence; empty is the base
using no_gil      = py::call_guard<py::gil_scoped_release>;

namespace {

token_array to_array(const std::vector<llama_token> & tokens) {
    return token_array((py::ssize_t) tokens.size(), tokens.data());
}

std::vector<llama_token> to_vector(const token_array & tokens) {
    if (tokens.ndim() != 1) {
        throw input_error("tokens: got an array of " + std::to_string(tokens.ndim()) + " dimensions, expected 1");
    }
    return std::vector<llama_token>(tokens.data(), tokens.data() + tokens.size());
}

// The parts of sequence i's blend.
blend to_blend(const blend_list::value_type & given, size_t i) {
    blend parts;
    for (const auto & [delta, scale] : given) {
        if (delta == nullptr) {
            throw input_error("sequence " + std::to_string(i) + ": a part of its blend is no delta");
        }
        parts.push_back({ delta, scale });
    }
    return parts;
}

std::vector<sequence> to_sequences(const std::vector<token_array> & tokens, const blend_list & blends) {
    if (blends.size() != tokens.size()) {
        throw input_error("got " + std::to_string(tokens.size()) + " sequences and " + std::to_string(blends.size()) +
                          " blends, expected as many of each");
    }
    std::vector<sequence> seqs;
    for (size_t i = 0; i < tokens.size(); ++i) {
        seqs.push_back({ to_vector(tokens[i]), to_blend(blends[i], i) });
    }
    return seqs;
}

// Lets Ctrl-C end a long run: the GIL is free while it lasts.
void check_signals() {
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) {
        throw py::error_already_set();
    }
}

py::list logits(session & self, const std::vector<token_array> & tokens, const blend_list & blends, const std::vector<size_t> & firsts) {
    const std::vector<sequence> seqs = to_sequences(tokens, blends);
    py::list                    result;
    std::vector<float *>        outs;
    for (size_t i = 0; i < seqs.size(); ++i) {
        const size_t n_tokens = seqs[i].tokens.size();
        if (i >= firsts.size() || (n_tokens > 0 && firsts[i] >= n_tokens)) {
            throw input_error("sequence " + std::to_string(i) + ": got no first row below its " + std::to_string(n_tokens) + " tokens");
        }
        py::array_t<float> out({ (py::ssize_t) (n_tokens - firsts[i]), (py::ssize_t) self.n_vocab });
        outs.push_back(out.mutable_data());
        result.append(std::move(out));
    }
    {
        py::gil_scoped_release free_gil;
        self.logits(seqs, firsts, outs, check_signals);
    }
    return result;
}

std::vector<std::pair<double, bool>> score(session & self, const std::vector<token_array> & tokens, const std::vector<size_t> & n_context,
                                           const blend_list & blends) {
    const std::vector<sequence> seqs = to_sequences(tokens, blends);
    py::gil_scoped_release      free_gil;
    return self.score(seqs, n_context, check_signals);
}

// Returns a list of (bytes, int32 [n_generated]). ended(number, n_generated) is an ended_fn; None never has enough.
py::list generate(session & self, const std::vector<token_array> & tokens, const blend_list & blends, const generate_params & params,
                  const py::object & ended) {
    const std::vector<sequence> seqs = to_sequences(tokens, blends);
    std::vector<generated>      items;
    const auto                  tell = [&](size_t number, size_t n_tokens) {
        py::gil_scoped_acquire gil;
        return ended.is_none() || ended(number, n_tokens).cast<bool>();
    };
    {
        py::gil_scoped_release free_gil;
        items = self.generate(seqs, params, tell, check_signals);
    }
    py::list result;
    for (const generated & item : items) {
        result.append(py::make_tuple(py::bytes(item.text), to_array(item.tokens)));
    }
    return result;
}

// Holds a point for each text of a caller of visit_inputs.
struct resume_points {
    std::vector<resume_point> points;
};

// visit(weight, rows, experts) gets float32 [n_rows, n_in], and int32 [n_rows] or None.
std::unordered_map<std::string, std::string> visit_inputs(session & self, const std::vector<token_array> & tokens,
                                                          const std::vector<std::string> & names, const py::function & visit,
                                                          resume_points * resume) {
    const std::vector<sequence> seqs = to_sequences(tokens, blend_list(tokens.size()));
    const auto                  show = [&](const tapped_rows & rows) {
        py::gil_scoped_acquire gil;
        const auto             n_rows = (py::ssize_t) rows.data.size() / rows.n_in;
        py::array_t<float>     data({ n_rows, (py::ssize_t) rows.n_in }, rows.data.data());
        visit(rows.weight, data, rows.experts.empty() ? py::object(py::none()) : py::object(to_array(rows.experts)));
    };
    py::gil_scoped_release free_gil;
    return self.visit_inputs(seqs, names, show, resume == nullptr ? nullptr : &resume->points, check_signals);
}

uint64_t time_streams(session & self, const blend_list & blends, size_t n_prompt, size_t n_gen, int32_t n_threads, uint32_t seed) {
    std::vector<blend> streams;
    for (size_t i = 0; i < blends.size(); ++i) {
        streams.push_back(to_blend(blends[i], i));
    }
    return self.time_streams(streams, { n_prompt, n_gen, n_threads, seed }, check_signals);
}

py::dict machine() {
    const machine_info info = read_machine_info();
    return py::dict(py::arg("build_commit") = info.build_commit, py::arg("build_number") = info.build_number,
                    py::arg("cpu_info") = info.cpus, py::arg("gpu_info") = info.gpus, py::arg("backends") = info.backends,
                    py::arg("isa") = info.isa, py::arg("cpu_features") = info.features);
}

using float_array = py::array_t<float, py::array::c_style>;
using byte_array  = py::array_t<uint8_t, py::array::c_style>;

void check_shape(const py::array & array, py::ssize_t n_rows, py::ssize_t n) {
    if (array.ndim() != 2 || array.shape(0) != n_rows || array.shape(1) != n) {
        throw std::invalid_argument("got an array of another shape than [" + std::to_string(n_rows) + ", " + std::to_string(n) + "]");
    }
}

// Returns values, scales and codes of the rows of x.
py::tuple code_rows_of(const float_array & x, int n_planes, float gaussian_step) {
    if (x.ndim() != 2 || n_planes < 1 || n_planes > ROW_PLANES_MAX) {
        throw std::invalid_argument("expected a matrix, and 1 to " + std::to_string(ROW_PLANES_MAX) + " planes");
    }
    float_array          values({ x.shape(0), x.shape(1) });
    float_array          scales({ x.shape(0), (py::ssize_t) n_planes });
    py::array_t<uint8_t> codes({ x.shape(0), x.shape(1) });
    const row_coding     coding = { x.data(),      (size_t) x.shape(0),   (size_t) x.shape(1),   n_planes,
                                    gaussian_step, values.mutable_data(), scales.mutable_data(), codes.mutable_data() };
    {
        py::gil_scoped_release free_gil;
        code_rows(coding);
    }
    return py::make_tuple(values, scales, codes);
}

// x is overwritten; `values`, `codes` and `errors` are written.
void feed_back_in(float_array & x, const float_array & share, const float_array & levels, const float_array & middles,
                  const byte_array & code_of, float_array & values, byte_array & codes, float_array & errors) {
    const py::ssize_t n = x.ndim() == 2 ? x.shape(0) : -1, n_rows = x.ndim() == 2 ? x.shape(1) : -1;
    const py::ssize_t n_levels = levels.ndim() == 2 ? levels.shape(0) : -1;
    check_shape(share, n, n);
    check_shape(levels, n_levels, n_rows);
    check_shape(middles, n_levels - 1, n_rows);
    check_shape(code_of, n_levels, n_rows);
    check_shape(values, n, n_rows);
    check_shape(codes, n, n_rows);
    check_shape(errors, n, n_rows);
    column_feedback columns{};
    columns.n        = (size_t) n;
    columns.n_rows   = (size_t) n_rows;
    columns.n_levels = (size_t) n_levels;
    columns.x        = x.mutable_data();
    columns.share    = share.data();
    columns.levels   = levels.data();
    columns.middles  = middles.data();
    columns.code_of  = code_of.data();
    columns.values   = values.mutable_data();
    columns.codes    = codes.mutable_data();
    columns.errors   = errors.mutable_data();
    py::gil_scoped_release free_gil;
    feed_back(columns);
}

// The C++ class input_error becomes the package's exception of that name.
void register_errors() {
    static py::object * error_class = new py::object(py::module_::import("dqrelo_gguf.errors").attr("InputError"));
    py::register_exception_translator([](std::exception_ptr thrown) {
        try {
            if (thrown) {
                std::rethrow_exception(thrown);
            }
        } catch (const input_error & err) {
            PyErr_SetString(error_class->ptr(), err.what());
        }
    });
}

void bind_params(py::module_ & m) {
    py::class_<session_params>(m, "SessionParams")
        .def(py::init<>())
        .def_readwrite("n_ctx", &session_params::n_ctx)
        .def_readwrite("n_batch", &session_params::n_batch)
        .def_readwrite("n_ubatch", &session_params::n_ubatch)
        .def_readwrite("n_seq_max", &session_params::n_seq_max)
        .def_readwrite("n_threads", &session_params::n_threads)
        .def_readwrite("n_gpu_layers", &session_params::n_gpu_layers)
        .def_readwrite("flash_attn", &session_params::flash_attn)
        .def_readwrite("type_k", &session_params::type_k)
        .def_readwrite("type_v", &session_params::type_v)
        .def_readwrite("use_mmap", &session_params::use_mmap)
        .def_readwrite("repack", &session_params::repack)
        .def_readwrite("kv_unified", &session_params::kv_unified)
        .def_readwrite("watch", &session_params::watch)
        .def_readwrite("verbose", &session_params::verbose);

    py::class_<generate_params>(m, "GenerateParams")
        .def(py::init<>())
        .def_readwrite("max_tokens", &generate_params::max_tokens)
        .def_readwrite("temperature", &generate_params::temperature)
        .def_readwrite("top_k", &generate_params::top_k)
        .def_readwrite("top_p", &generate_params::top_p)
        .def_readwrite("seed", &generate_params::seed)
        .def_readwrite("stop", &generate_params::stop);
}

void bind_delta(py::module_ & m) {
    const auto enter = [](const std::shared_ptr<loaded_delta> & self) { return self; };
    const auto exit  = [](loaded_delta & self, const py::args &) { self.close(); };
    const auto repr  = [](const loaded_delta & self) {
        return "Delta('" + self.name + "', " + (self.is_closed() ? "closed" : self.content_hash.substr(0, 12)) + ")";
    };
    py::class_<loaded_delta, std::shared_ptr<loaded_delta>>(m, "Delta", "A delta file loaded by Runtime.load_delta.")
        .def("__enter__", enter)
        .def("__exit__", exit)
        .def("__repr__", repr)
        .def("close", &loaded_delta::close, "Frees the delta. Raises InputError while a running call uses it.")
        .def("meta", &loaded_delta::meta, py::arg("key"), "A scalar metadata value of the file as text, or None.")
        .def_property_readonly("closed", &loaded_delta::is_closed, "True once it was freed.")
        .def_readonly("name", &loaded_delta::name, "The fine-tune's name (general.name).")
        .def_readonly("path", &loaded_delta::path, "The file.")
        .def_readonly("content_hash", &loaded_delta::content_hash, "64 hex digits that identify what the delta computes.")
        .def_readonly("chat_template", &loaded_delta::chat_template, "The fine-tune's chat template (Jinja); None means the base's.")
        .def_readonly("same_base_file", &loaded_delta::same_base_file, "False if the delta was made from another quantisation of the base.")
        .def_readonly("ratio", &loaded_delta::ratio, "Bytes of its tensors over 2 bytes a weight that they replace.")
        .def_readonly("n_bytes", &loaded_delta::n_bytes, "Bytes of its tensors.")
        .def_readonly("n_weights", &loaded_delta::n_weights, "Base tensors that it changes.")
        .def_readonly("inert", &loaded_delta::inert, "Names of changed weights that no graph of the runtime reads.")
        .def_readonly("eog_tokens", &loaded_delta::eog_tokens, "Its end-of-generation tokens; empty means the base's.");
}

void bind_session(py::module_ & m) {
    const auto load_delta = [](session & self, const std::string & path, bool allow_other_base, bool verify, float max_scale) {
        dqrelo_load_params params     = dqrelo_load_default_params();
        params.allow_other_base_bytes = allow_other_base;
        params.verify                 = verify;
        params.max_scale              = max_scale;
        return self.load_delta(path, params);
    };
    const auto tokenize = [](session & self, const std::string & text, bool add_special, bool parse_special, const loaded_delta * owner) {
        std::vector<llama_token> tokens;
        {
            py::gil_scoped_release free_gil;
            tokens = self.tokenize(text, add_special, parse_special, owner);
        }
        return to_array(tokens);
    };
    const auto detokenize = [](session & self, const token_array & tokens, bool special) {
        const std::vector<llama_token> ids = to_vector(tokens);
        std::string                    text;
        {
            py::gil_scoped_release free_gil;
            text = self.detokenize(ids, special);
        }
        return py::bytes(text);
    };
    const auto set_weight = [](session & self, const std::string & name, const float_array & values) {
        const auto             n    = (size_t) values.size();
        const float *          data = values.data();
        py::gil_scoped_release free_gil;
        self.set_weight(name, data, n);
    };
    py::class_<resume_points>(m, "ResumePoints",
                              "Where texts go on that Runtime.visit_inputs has read before, graph by graph; empty at first.")
        .def(py::init<>())
        .def_property_readonly("n_bytes", [](const resume_points & self) {
            size_t n_bytes = 0;
            for (const resume_point & point : self.points) {
                for (const resume_point::part & part : point.parts) {
                    n_bytes += part.bytes.size();
                }
            }
            return n_bytes;
        });
    py::class_<session>(m, "Session")
        .def(py::init<const std::string &, const session_params &>(), py::arg("path"), py::arg("params"), no_gil())
        .def("close", &session::close, no_gil())
        .def("stop", &session::stop, no_gil())
        .def("load_delta", load_delta, py::arg("path"), py::arg("allow_other_base"), py::arg("verify"),
             py::arg("max_scale") = DQRELO_MAX_SCALE, no_gil())
        .def("tokenize", tokenize, py::arg("text"), py::arg("add_special"), py::arg("parse_special"), py::arg("delta"))
        .def("detokenize", detokenize, py::arg("tokens"), py::arg("special"))
        .def("prefix_token", &session::prefix_token, py::arg("delta"), no_gil())
        .def("logits", &logits, py::arg("tokens"), py::arg("blends"), py::arg("firsts"))
        .def("score", &score, py::arg("tokens"), py::arg("n_context"), py::arg("blends"))
        .def("generate", &generate, py::arg("tokens"), py::arg("blends"), py::arg("params"), py::arg("ended") = py::none())
        .def("visit_inputs", &visit_inputs, py::arg("tokens"), py::arg("names"), py::arg("visit"),
             py::arg("resume") = static_cast<resume_points *>(nullptr))
        .def("set_weight", set_weight, py::arg("name"), py::arg("values").noconvert())
        .def("time_streams", &time_streams, py::arg("blends"), py::arg("n_prompt"), py::arg("n_gen"), py::arg("n_threads"), py::arg("seed"),
             no_gil())
        .def_property_readonly("closed", &session::is_closed)
        .def_property_readonly("n_evaluated", [](const session & self) { return self.n_evaluated.load(); })
        .def_readonly("path", &session::path)
        .def_readonly("description", &session::description)
        .def_readonly("chat_template", &session::chat_template)
        .def_readonly("n_vocab", &session::n_vocab)
        .def_readonly("n_ctx_train", &session::n_ctx_train)
        .def_readonly("n_embd", &session::n_embd)
        .def_readonly("n_layer", &session::n_layer)
        .def_readonly("n_ctx", &session::n_ctx)
        .def_readonly("n_batch", &session::n_batch)
        .def_readonly("n_ubatch", &session::n_ubatch)
        .def_readonly("n_seq_max", &session::n_seq_max)
        .def_readonly("n_threads", &session::n_threads)
        .def_readonly("n_bytes", &session::n_bytes)
        .def_readonly("n_params", &session::n_params);
}

} // namespace

PYBIND11_MODULE(_core, m) {
    m.doc() = "Native part of dqrelo_gguf.runtime.";
    log_install(false);
    ggml_backend_load_all(); // This loads what GGML_BACKEND_PATH names, too.
    register_errors();
    bind_params(m);
    bind_delta(m);
    bind_session(m);
    m.def("machine", &machine);
    m.def("code_rows", &code_rows_of, py::arg("x").noconvert(), py::arg("n_planes"), py::arg("gaussian_step"));
    m.def("feed_back", &feed_back_in, py::arg("x").noconvert(), py::arg("share").noconvert(), py::arg("levels").noconvert(),
          py::arg("middles").noconvert(), py::arg("code_of").noconvert(), py::arg("values").noconvert(), py::arg("codes").noconvert(),
          py::arg("errors").noconvert());
}
