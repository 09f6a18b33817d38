// Says which sources the library was compiled from, for library.py, which refuses one that is not of those beside it.
#ifndef HMI_SOURCES
#define HMI_SOURCES ""  // build_kernels.py gives their digest
#endif

extern "C" const char* hmi_sources() { return HMI_SOURCES; }
