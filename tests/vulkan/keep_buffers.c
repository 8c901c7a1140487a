// Preloaded, keeps every VkBuffer until the process ends.
//
// The descriptor sets of ggml-vulkan have more bindings than most shaders read. Those that a shader does not read may name buffers
// that are destroyed since, which Vulkan allows; lavapipe of Mesa 22.3 counts references on them nevertheless, in freed memory.

#include <dlfcn.h>
#include <string.h>
#include <vulkan/vulkan_core.h>

static VKAPI_ATTR void VKAPI_CALL keep_buffer(VkDevice device, VkBuffer buffer, const VkAllocationCallbacks * allocator) {
    (void) device;
    (void) buffer;
    (void) allocator;
}

VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL vkGetInstanceProcAddr(VkInstance instance, const char * name) {
    static PFN_vkGetInstanceProcAddr next;
    // It is found by name, since RTLD_NEXT does not see libraries that the importing of a Python module loads.
    if (!next) {
        void * loader = dlopen("libvulkan.so.1", RTLD_NOW);
        next          = loader ? (PFN_vkGetInstanceProcAddr) dlsym(loader, "vkGetInstanceProcAddr") : NULL;
    }
    if (!next) {
        return NULL;
    }
    return strcmp(name, "vkDestroyBuffer") == 0 ? (PFN_vkVoidFunction) keep_buffer : next(instance, name);
}
