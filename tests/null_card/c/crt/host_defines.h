/* What driver_types.h of CUDA 13 takes from the compiler's own header, which is not in the runtime's wheel. */
#ifndef NULL_CARD_HOST_DEFINES_H
#define NULL_CARD_HOST_DEFINES_H
#define __host__
#define __device__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __builtin_align__(bytes) __attribute__((aligned(bytes)))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define CUDARTAPI
#endif
