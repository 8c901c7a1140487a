// fake-device.h: a device in the host's memory that only the tests know, with what is asked for: the operator or none, copies that wait,
// too little memory.
#pragma once

#include "dqrelo-op.h"

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

// Buffers are memory of the heap that ggml takes for a device's. Asynchronous copies read their source as late as they may: when their
// event, or their stream, is waited for.
class fake_device {
public:
    enum ggml_backend_dev_type type         = GGML_BACKEND_DEVICE_TYPE_GPU;
    std::string                reg_name     = "Fake";
    std::string                buft_name    = "Fake0";
    bool                       has_operator = true;
    bool                       is_async     = true;
    size_t                     n_bytes_max  = SIZE_MAX; // bytes of a buffer

    int n_buffers = 0; // number of buffers that live
    int n_async   = 0; // number of copies that were asked for

    fake_device() {
        reg                      = { GGML_BACKEND_API_VERSION, {}, this };
        reg.iface.get_name       = [](ggml_backend_reg_t r) { return ((fake_device *) r->context)->reg_name.c_str(); };
        buft                     = { {}, &dev, this };
        buft.iface.get_name      = [](ggml_backend_buffer_type_t t) { return of(t).buft_name.c_str(); };
        buft.iface.get_alignment = [](ggml_backend_buffer_type_t) { return (size_t) 128; };
        buft.iface.alloc_buffer  = alloc_buffer;
        buft.iface.is_host       = [](ggml_backend_buffer_type_t) { return false; };
        pinned                   = buft;
        pinned.iface.is_host     = [](ggml_backend_buffer_type_t) { return true; };
        set_device_functions();
    }
    fake_device(const fake_device &)             = delete;
    fake_device & operator=(const fake_device &) = delete;

    ggml_backend_reg         reg;
    ggml_backend_device      dev;
    ggml_backend_buffer_type buft;   // It is the device's memory.
    ggml_backend_buffer_type pinned; // It is memory of the host that the device can read.

private:
    struct copy {
        void *       to;
        const void * from;
        size_t       n_bytes;
    };
    struct stream {
        fake_device *     device;
        std::vector<copy> waiting;
        size_t            n_done = 0;
    };
    struct event {
        stream * on      = nullptr;
        size_t   n_ahead = 0; // number of copies that it stands behind
    };

    static fake_device & of(ggml_backend_buffer_type_t t) { return *(fake_device *) t->context; }
    static fake_device & of(ggml_backend_dev_t d) { return *(fake_device *) d->context; }
    static stream &      of(ggml_backend_t b) { return *(stream *) b->context; }

    static void run(stream & s, size_t n) {
        for (; s.n_done < n; s.n_done++) {
            memcpy(s.waiting[s.n_done].to, s.waiting[s.n_done].from, s.waiting[s.n_done].n_bytes);
        }
    }

    static ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t t, size_t n_bytes) {
        if (n_bytes > of(t).n_bytes_max) {
            return nullptr;
        }
        of(t).n_buffers++;
        ggml_backend_buffer_i iface = {};
        iface.get_base              = [](ggml_backend_buffer_t b) { return b->context; };
        iface.free_buffer           = [](ggml_backend_buffer_t b) {
            of(b->buft).n_buffers--;
            free(b->context);
        };
        iface.set_tensor = [](ggml_backend_buffer_t, ggml_tensor * to, const void * data, size_t offset, size_t n) {
            memcpy((char *) to->data + offset, data, n);
        };
        iface.get_tensor = [](ggml_backend_buffer_t, const ggml_tensor * from, void * data, size_t offset, size_t n) {
            memcpy(data, (const char *) from->data + offset, n);
        };
        iface.clear = [](ggml_backend_buffer_t b, uint8_t value) { memset(b->context, value, b->size); };
        return ggml_backend_buffer_init(t, iface, aligned_alloc(128, GGML_PAD(n_bytes + 1, 128)), n_bytes);
    }

    static ggml_backend_t init_backend(ggml_backend_dev_t d, const char *) {
        ggml_backend_i iface = {};
        iface.get_name       = [](ggml_backend_t) { return "fake stream"; };
        iface.free           = [](ggml_backend_t b) {
            delete (stream *) b->context;
            delete b;
        };
        iface.set_tensor_async = [](ggml_backend_t b, ggml_tensor * to, const void * data, size_t offset, size_t n) {
            of(b).device->n_async++;
            of(b).waiting.push_back({ (char *) to->data + offset, data, n });
        };
        iface.synchronize  = [](ggml_backend_t b) { run(of(b), of(b).waiting.size()); };
        iface.event_record = [](ggml_backend_t b, ggml_backend_event_t e) { *(event *) e->context = { &of(b), of(b).waiting.size() }; };
        return new ggml_backend{ nullptr, iface, d, new stream{ &of(d), {}, 0 } };
    }

    void set_device_functions() {
        dev                            = { {}, &reg, this };
        dev.iface.get_name             = [](ggml_backend_dev_t d) { return of(d).buft_name.c_str(); };
        dev.iface.get_type             = [](ggml_backend_dev_t d) { return of(d).type; };
        dev.iface.get_buffer_type      = [](ggml_backend_dev_t d) { return &of(d).buft; };
        dev.iface.get_host_buffer_type = [](ggml_backend_dev_t d) { return &of(d).pinned; };
        dev.iface.init_backend         = init_backend;
        dev.iface.get_description      = dev.iface.get_name;
        dev.iface.get_memory           = [](ggml_backend_dev_t, size_t * n_free, size_t * n_total) { *n_free = *n_total = 0; };
        dev.iface.get_props            = [](ggml_backend_dev_t d, ggml_backend_dev_props * props) {
            *props                  = {};
            props->caps.async       = of(d).is_async;
            props->caps.host_buffer = of(d).is_async;
            props->caps.events      = of(d).is_async;
        };
        // The device takes the operator where its table lies in the device's memory, as in ggml-cuda.
        dev.iface.supports_op = [](ggml_backend_dev_t d, const ggml_tensor * op) {
            return op->op == GGML_OP_DQRELO && of(d).has_operator && op->src[2]->buffer && op->src[2]->buffer->buft == &of(d).buft;
        };
        dev.iface.event_new  = [](ggml_backend_dev_t d) { return new ggml_backend_event{ d, new event() }; };
        dev.iface.event_free = [](ggml_backend_dev_t, ggml_backend_event_t e) {
            delete (event *) e->context;
            delete e;
        };
        dev.iface.event_synchronize = [](ggml_backend_dev_t, ggml_backend_event_t e) {
            const event & at = *(event *) e->context;
            if (at.on) {
                run(*at.on, at.n_ahead);
            }
        };
    }
};
