// The few functions of the driver that torch and its libraries ask for directly; one device, no context of its own.
typedef int E;
typedef void *P;
E cuCtxGetCurrent(P *c) {
    *c = (P)1;
    return 0;
}
E cuDeviceGet(int *d, int n) {
    *d = n;
    return 0;
}
E cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a) {
    *f = 0;
    *a = 1;
    return 0;
}
E cuDeviceGetAttribute(int *v, int a, int d) {
    *v = 0;
    return 0;
}
E cuGetErrorString(int e, const char **s) {
    *s = "null";
    return 0;
}
E cuDriverGetVersion(int *v) {
    *v = 13000;
    return 0;
}
E cuDeviceGetCount(int *n) {
    *n = 1;
    return 0;
}
