// runtime.h: the CUDA runtime. Every call is done when it returns, so streams and events are names only.
//
// Environment: CUEMU_DEVICES = how many devices there are (1 by default). A kernel can touch the memory of its own device only.
#pragma once

#include "launch.h"
#include "memory.h"

#define CUDART_VERSION 11000 // In this version CUB, programmatic launches and bytes of 8-bit floats are not used yet.
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __builtin_assume(x) ((void) 0)

enum cudaError_t {
    cudaSuccess                       = 0,
    cudaErrorInvalidValue             = 1,
    cudaErrorMemoryAllocation         = 2,
    cudaErrorInvalidDevice            = 101,
    cudaErrorNotSupported             = 801,
    cudaErrorPeerAccessAlreadyEnabled = 704,
    cudaErrorPeerAccessNotEnabled     = 705
};
inline const char * cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid value";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInvalidDevice: return "no such device";
        default: return "not emulated";
    }
}
inline cudaError_t cudaGetLastError() {
    return cudaSuccess;
}
inline cudaError_t cudaPeekAtLastError() {
    return cudaSuccess;
}

//
// devices
//

enum cudaDeviceAttr { cudaDevAttrCooperativeLaunch = 95 };
enum { cudaDeviceScheduleSpin = 1 };

// A Pascal card: it has __dp4a, and no tensor cores.
constexpr int CUEMU_ARCH = 610;

struct cudaDeviceProp {
    char   name[256];
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin;
    int    major, minor, multiProcessorCount, warpSize, integrated, maxThreadsPerBlock, regsPerBlock;
};

inline cudaError_t cudaGetDeviceCount(int * n) {
    *n = cuemu::n_devices();
    return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int * device) {
    *device = cuemu::current_device();
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= cuemu::n_devices()) {
        return cudaErrorInvalidDevice;
    }
    cuemu::current_device() = device;
    return cudaSuccess;
}
inline cudaError_t cudaSetDeviceFlags(unsigned) {
    return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
    return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp * p, int device) {
    *p = {};
    snprintf(p->name, sizeof(p->name), "emulated GPU %d", device);
    p->totalGlobalMem         = cuemu::DEVICE_BYTES;
    p->sharedMemPerBlock      = 48 * 1024;
    p->sharedMemPerBlockOptin = cuemu::MAX_DYNAMIC_BYTES;
    p->major                  = CUEMU_ARCH / 100;
    p->minor                  = CUEMU_ARCH % 100 / 10;
    p->multiProcessorCount    = 4;
    p->warpSize               = 32;
    p->maxThreadsPerBlock     = 1024;
    p->regsPerBlock           = 65536;
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int * value, cudaDeviceAttr, int) {
    *value = 0;
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetPCIBusId(char * id, int n, int device) {
    snprintf(id, (size_t) n, "0000:%02x:00.0", device);
    return cudaSuccess;
}
inline cudaError_t cudaDeviceCanAccessPeer(int * can, int, int) {
    *can = 0;
    return cudaSuccess;
}
inline cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) {
    return cudaErrorNotSupported;
}
inline cudaError_t cudaDeviceDisablePeerAccess(int) {
    return cudaErrorPeerAccessNotEnabled;
}

//
// memory
//

enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
enum { cudaHostRegisterPortable = 1, cudaHostRegisterReadOnly = 8, cudaHostAllocPortable = 1, cudaHostAllocMapped = 2 };
typedef struct CUstream_st * cudaStream_t;
#define cudaStreamPerThread ((cudaStream_t) 2)

template <typename T>
cudaError_t cudaMalloc(T ** p, size_t n_bytes) {
    *p = n_bytes == 0 ? nullptr : (T *) cuemu::the_memory().take(n_bytes); // To ask for nothing is no error.
    return *p || n_bytes == 0 ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void * p) {
    if (p) {
        cuemu::the_memory().give_back(p);
    }
    return cudaSuccess;
}
template <typename T>
cudaError_t cudaMallocManaged(T **, size_t) {
    return cudaErrorNotSupported;
}
inline cudaError_t cudaMemGetInfo(size_t * n_free, size_t * n_total) {
    *n_total = cuemu::DEVICE_BYTES;
    *n_free  = cuemu::DEVICE_BYTES - cuemu::the_memory().n_used[cuemu::current_device()];
    return cudaSuccess;
}

inline cudaError_t cudaMallocHost(void ** p, size_t n_bytes) {
    return posix_memalign(p, 256, n_bytes) == 0 ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaHostAlloc(void ** p, size_t n_bytes, unsigned) {
    return cudaMallocHost(p, n_bytes);
}
inline cudaError_t cudaFreeHost(void * p) {
    free(p);
    return cudaSuccess;
}
inline cudaError_t cudaHostGetDevicePointer(void ** device, void * host, unsigned) {
    *device = host;
    return cudaSuccess;
}
inline cudaError_t cudaHostRegister(void *, size_t, unsigned) {
    return cudaSuccess;
}
inline cudaError_t cudaHostUnregister(void *) {
    return cudaSuccess;
}

inline cudaError_t cudaMemcpy(void * dst, const void * src, size_t n_bytes, cudaMemcpyKind) {
    const cuemu::copying memory;
    memmove(dst, src, n_bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void * dst, const void * src, size_t n_bytes, cudaMemcpyKind kind, cudaStream_t = nullptr) {
    return cudaMemcpy(dst, src, n_bytes, kind);
}
inline cudaError_t cudaMemcpyPeerAsync(void * dst, int, const void * src, int, size_t n_bytes, cudaStream_t = nullptr) {
    return cudaMemcpy(dst, src, n_bytes, cudaMemcpyDeviceToDevice);
}
inline cudaError_t cudaMemcpy2DAsync(void * dst, size_t dst_pitch, const void * src, size_t src_pitch, size_t width, size_t height,
                                     cudaMemcpyKind, cudaStream_t = nullptr) {
    const cuemu::copying memory;
    for (size_t i = 0; i < height; i++) {
        memmove((char *) dst + i * dst_pitch, (const char *) src + i * src_pitch, width);
    }
    return cudaSuccess;
}
inline cudaError_t cudaMemset(void * dst, int value, size_t n_bytes) {
    const cuemu::copying memory;
    memset(dst, value, n_bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void * dst, int value, size_t n_bytes, cudaStream_t = nullptr) {
    return cudaMemset(dst, value, n_bytes);
}

//
// streams and events
//

enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
typedef struct CUevent_st *     cudaEvent_t;
typedef struct CUgraph_st *     cudaGraph_t;
typedef struct CUgraphExec_st * cudaGraphExec_t;
typedef struct CUgraphNode_st * cudaGraphNode_t;
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone };
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed = 2 };

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t * stream, unsigned) {
    *stream = (cudaStream_t) malloc(1); // The pointer is a name of its own.
    return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    free(stream);
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus * status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    return cudaErrorNotSupported;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t * event, unsigned) {
    *event = (cudaEvent_t) malloc(1);
    return cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t * event) {
    return cudaEventCreateWithFlags(event, 0);
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
    free(event);
    return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t = nullptr) {
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) {
    return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned = 0) {
    return cudaSuccess;
}
inline cudaError_t cudaLaunchHostFunc(cudaStream_t, void (*function)(void *), void * data) {
    function(data);
    return cudaSuccess;
}

//
// kernels
//

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaFuncAttributes {
    int    numRegs, maxThreadsPerBlock;
    size_t sharedSizeBytes;
};

template <typename F>
cudaError_t cudaFuncSetAttribute(F, cudaFuncAttribute, int n_bytes) {
    if ((size_t) n_bytes > cuemu::MAX_DYNAMIC_BYTES) {
        return cudaErrorInvalidValue;
    }
    cuemu::dynamic_limit() = std::max(cuemu::dynamic_limit(), (size_t) n_bytes);
    return cudaSuccess;
}
template <typename F>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes * attributes, F) {
    *attributes                    = {};
    attributes->maxThreadsPerBlock = 1024;
    return cudaSuccess;
}
template <typename F>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int * n, F, int, size_t) {
    *n = 2;
    return cudaSuccess;
}
template <typename F>
cudaError_t cudaLaunchCooperativeKernel(F, dim3, dim3, void **, size_t, cudaStream_t) {
    return cudaErrorNotSupported;
}
