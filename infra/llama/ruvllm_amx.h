// Included before every C++ source of llama.cpp (-include, see infra/setup.sh); acts in ggml's CPU backend alone.
//
// GCC 12 (and others) declare that _tile_loadconfig reads 8 bytes of the 64 that it does read, so the stores that fill
// the rest of ggml's tile configuration look dead, are dropped, and the first AMX matrix product kills the process. Here
// the instruction names all 64. The mark tells ruvllm/inference/machine.py that this library's AMX can be trusted.
#if defined(__AMX_TILE__) && defined(__has_include)
#if __has_include("amx/amx.h")
#include <immintrin.h>

static inline __attribute__((always_inline)) void ruvllm_tile_loadconfig(const void * config) {
    __asm__ volatile("ldtilecfg %0" : : "m"(*(const char (*)[64]) config));
}

#define _tile_loadconfig ruvllm_tile_loadconfig

__attribute__((used)) static const char ruvllm_amx_mark[] = "ruvllm: whole AMX tile configuration";
#endif
#endif
