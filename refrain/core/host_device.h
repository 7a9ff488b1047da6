// One text for the host and for CUDA kernels.
#pragma once

/// Marks a function that kernels call as well; nothing where CUDA is not the compiler. What is constexpr needs no mark.
#if defined(__CUDACC__)
#define REFRAIN_HD __host__ __device__
#else
#define REFRAIN_HD
#endif
