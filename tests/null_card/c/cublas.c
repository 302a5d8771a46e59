// cuBLAS that computes no product: handles are given out, everything else succeeds (cublas.idle).
typedef int E;
typedef void *P;
typedef unsigned long S;
static char h[4096];
E cublasCreate_v2(P *p) {
    *p = h;
    return 0;
}
E cublasGetMathMode(P p, int *m) {
    *m = 0;
    return 0;
}
E cublasGetPointerMode_v2(P p, int *m) {
    *m = 0;
    return 0;
}
// Products are counted: each is a kernel of the real library.
static unsigned long products;
S nullcuda_products() { return products; }
#define PRODUCT(name) E name() { __sync_add_and_fetch(&products, 1); return 0; }
PRODUCT(cublasCgemmBatched)
PRODUCT(cublasCgemmStridedBatched)
PRODUCT(cublasCgemm_v2)
PRODUCT(cublasCgemv_v2)
PRODUCT(cublasDgemmBatched)
PRODUCT(cublasDgemmStridedBatched)
PRODUCT(cublasDgemm_v2)
PRODUCT(cublasDgemv_v2)
PRODUCT(cublasGemmEx)
PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemmBatched)
PRODUCT(cublasSgemmEx)
PRODUCT(cublasSgemmStridedBatched)
PRODUCT(cublasSgemm_v2)
PRODUCT(cublasSgemv_v2)
PRODUCT(cublasZgemmBatched)
PRODUCT(cublasZgemmStridedBatched)
PRODUCT(cublasZgemm_v2)
PRODUCT(cublasZgemv_v2)
