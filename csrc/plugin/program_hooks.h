// What the plug-in learns of the program, and tells it, through the CPU backend's registry.
//
// llama.cpp asks the registry for functions by name, before it uses them. Those questions say what no
// interface says, and a few are answered here:
//
//     ggml_backend_cpu_is_numa          asked once for each file before it is mapped: a yes keeps
//                                       llama.cpp from reading the whole file. Said only to a load
//                                       that has put experts into our buffer type.
//     ggml_backend_dev_get_extra_bufts  asked by a load that rearranges weights, and by no other.
//     ggml_backend_cpu_set_threadpool   the program's pool, which our own CPU backend shares.
//
// A load runs on one thread, so what is learned of it is kept by thread. Any thread.
#ifndef REMOE_PLUGIN_PROGRAM_HOOKS_H_
#define REMOE_PLUGIN_PROGRAM_HOOKS_H_

namespace remoe::plugin {

// Idempotent. REQUIRES: a CPU backend is registered.
void HookCpuRegistry();

// llama.cpp lists the buffer types of a load that begins on this thread.
void LoadBegins();
// That load has put experts into our buffer type.
void LoadHasExperts();
// Its buffers are made: what is said of files from now on is another load's.
struct LoadLearned {
  bool repacks = false;
};
LoadLearned LoadIsPlaced();

}  // namespace remoe::plugin

#endif  // REMOE_PLUGIN_PROGRAM_HOOKS_H_
