/* libremoe.so: what llama.cpp's loader opens, by GGML_BACKEND_PATH.
 *
 * It knows nothing of ggml but four names. It asks the ggml that called it for its version and commit,
 * and its library for the linker's build ID, since trees without git tell no commit. It opens the plug-in
 * that was compiled for exactly that build: builds/VERSION-COMMIT-ID/ beside this file, or below
 * $REMOE_PLUGIN_BUILDS. The one that the package brings for the pinned llama-cpp-python, which everybody's
 * pip compiles anew, has no ID in its name. Where there is none, nothing is loaded, and a line says which
 * build was found, which are there, and what to type.
 *
 * Preloaded (LD_PRELOAD), it also has programs look at GGML_BACKEND_PATH that never would: builds of
 * llama.cpp without GGML_BACKEND_DL load backends only when a flag asks for all of them. Every program
 * asks how many there are as it starts; the first to ask has them loaded.
 *
 * C and the C library alone, so that it can be preloaded into any process. Any thread.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <link.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define PATH_BYTES 4096

EXPORT void* ggml_backend_init(void);
EXPORT size_t ggml_backend_reg_count(void);

/* The library that holds `address`, with all it depends on. */
static void* library_of(const void* address) {
  Dl_info found;
  if (dladdr(address, &found) == 0 || found.dli_fname == NULL) return NULL;
  return dlopen(found.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
}

static const char* ask(void* library, const char* function) {
  const char* (*answer)(void) = (const char* (*)(void))dlsym(library, function);
  return answer != NULL ? answer() : NULL;
}

struct search {
  uintptr_t address;
  char id[2 * 8 + 1];
};

/* Of the first eight bytes, the linker's note in the library that holds the address. */
static int find_id(struct dl_phdr_info* library, size_t n_bytes, void* data) {
  struct search* search = data;
  int holds = 0;
  (void)n_bytes;
  for (int i = 0; i < library->dlpi_phnum; i++) {
    const ElfW(Phdr)* part = &library->dlpi_phdr[i];
    const uintptr_t begin = library->dlpi_addr + part->p_vaddr;
    holds |= part->p_type == PT_LOAD && search->address - begin < part->p_memsz;
  }
  if (!holds) return 0;
  for (int i = 0; i < library->dlpi_phnum; i++) {
    const ElfW(Phdr)* part = &library->dlpi_phdr[i];
    if (part->p_type != PT_NOTE) continue;
    const char* at = (const char*)(library->dlpi_addr + part->p_vaddr);
    const char* end = at + part->p_memsz;
    while (at + sizeof(ElfW(Nhdr)) <= end) {
      const ElfW(Nhdr)* note = (const ElfW(Nhdr)*)at;
      const char* name = at + sizeof *note;
      const unsigned char* value = (const unsigned char*)name + (note->n_namesz + 3) / 4 * 4;
      if (note->n_type == NT_GNU_BUILD_ID && note->n_namesz == 4 && memcmp(name, "GNU", 4) == 0) {
        for (unsigned byte = 0; byte < 8 && byte < note->n_descsz; byte++) {
          snprintf(search->id + 2 * byte, 3, "%02x", value[byte]);
        }
        return 1;
      }
      at = (const char*)value + (note->n_descsz + 3) / 4 * 4;
    }
  }
  return 1;
}

/* The folder of this file, without the last slash. */
static void own_folder(char* folder) {
  Dl_info own;
  folder[0] = '\0';
  if (dladdr((const void*)&ggml_backend_init, &own) == 0) return;
  snprintf(folder, PATH_BYTES, "%s", own.dli_fname);
  char* slash = strrchr(folder, '/');
  if (slash != NULL) *slash = '\0';
}

/* A build's folder is its version, commit and ID, with whatever no file name should hold replaced. */
static void build_name(const char* version, const char* commit, const char* id, char* name,
                       size_t n_bytes) {
  snprintf(name, n_bytes, "%s-%s%s%s", version, commit, id[0] != '\0' ? "-" : "", id);
  for (char* at = name; *at != '\0'; at++) {
    const int fine = (*at >= '0' && *at <= '9') || (*at >= 'a' && *at <= 'z') ||
                     (*at >= 'A' && *at <= 'Z') || *at == '.' || *at == '_' || *at == '-';
    if (!fine) *at = '_';
  }
}

/* What the plug-in's core does with its lines, too. */
static int is_silent(void) {
  const char* log = getenv("REMOE_LOG");
  return log != NULL && strcmp(log, "off") == 0;
}

static void list_builds(const char* folder) {
  char builds[PATH_BYTES + 16];
  snprintf(builds, sizeof builds, "%s/builds", folder);
  DIR* open = opendir(builds);
  if (open == NULL) return;
  for (struct dirent* entry; (entry = readdir(open)) != NULL;) {
    if (entry->d_name[0] != '.') fprintf(stderr, "remoe-edge:   built for %s\n", entry->d_name);
  }
  closedir(open);
}

static void* open_build(const char* folder, const char* name) {
  char path[2 * PATH_BYTES];
  snprintf(path, sizeof path, "%s/builds/%s/libremoe-core.so", folder, name);
  FILE* there = fopen(path, "re");
  if (there == NULL) return NULL;
  fclose(there);
  void* core = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (core == NULL && !is_silent()) fprintf(stderr, "remoe-edge: %s\n", dlerror());
  return core;
}

/* Whether that code is llama-cpp-python's own. */
static int is_packaged(const void* address) {
  Dl_info found;
  return dladdr(address, &found) != 0 && found.dli_fname != NULL &&
         strstr(found.dli_fname, "/llama_cpp/lib/") != NULL;
}

void* ggml_backend_init(void) {
  void* ggml = library_of(__builtin_return_address(0));
  const char* version = ggml != NULL ? ask(ggml, "ggml_version") : NULL;
  const char* commit = ggml != NULL ? ask(ggml, "ggml_commit") : NULL;
  if (version == NULL || commit == NULL) {
    if (is_silent()) return NULL;
    fprintf(stderr,
            "remoe-edge: this program's ggml tells no version (too old, or linked into the "
            "program): experts are not streamed. Use a llama.cpp with shared libraries\n");
    return NULL;
  }
  char own[PATH_BYTES], name[256], packaged[256];
  own_folder(own);
  struct search search = {(uintptr_t)dlsym(ggml, "ggml_version"), ""};
  dl_iterate_phdr(find_id, &search);
  build_name(version, commit, search.id, name, sizeof name);
  build_name(version, commit, "", packaged, sizeof packaged);
  const char* more = getenv("REMOE_PLUGIN_BUILDS");
  void* core = open_build(own, name);
  if (core == NULL && more != NULL) core = open_build(more, name);
  if (core == NULL && is_packaged((const void*)search.address)) core = open_build(own, packaged);
  if (core == NULL) {
    if (is_silent()) return NULL;
    fprintf(stderr,
            "remoe-edge: this program has ggml %s (commit %s, build %s), and no plug-in was"
            " built for it: experts are not streamed. Build one: remoe-edge plugin build"
            " --llama-cpp DIR, where DIR is that llama.cpp's source tree\n",
            version, commit, search.id[0] != '\0' ? search.id : "unknown");
    list_builds(own);
    if (more != NULL) list_builds(more);
    return NULL;
  }
  void* (*init)(void) = (void* (*)(void))dlsym(core, "remoe_plugin_init");
  return init != NULL ? init() : NULL;
}

size_t ggml_backend_reg_count(void) {
  static _Atomic(void*) library;
  static atomic_flag asked = ATOMIC_FLAG_INIT;
  void* caller = atomic_load(&library);
  if (caller == NULL) {
    caller = library_of(__builtin_return_address(0));
    /* Of a program's own call: its handle finds what is preloaded first, which is this. */
    if (caller == NULL ||
        dlsym(caller, "ggml_backend_reg_count") == (void*)&ggml_backend_reg_count) {
      caller = RTLD_NEXT;
    }
    atomic_store(&library, caller);
  }
  size_t (*count)(void) = (size_t (*)(void))dlsym(caller, "ggml_backend_reg_count");
  if (count == NULL) return 0;
  if (getenv("GGML_BACKEND_PATH") != NULL && !atomic_flag_test_and_set(&asked)) {
    void (*load_all)(void) = (void (*)(void))dlsym(caller, "ggml_backend_load_all");
    if (load_all != NULL) load_all();
  }
  return count();
}
