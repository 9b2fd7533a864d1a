# Cross-builds for 64-bit Arm on Linux against a Debian root. tools/prove/arm64.py makes the root and says where it is:
#   AARCH64_ROOT        unpacked packages: C library, Python headers, OpenMP runtime
#   AARCH64_NUMPY       NumPy's headers
#   AARCH64_COMPILER    gcc or clang
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES AARCH64_ROOT AARCH64_NUMPY AARCH64_COMPILER)
set(CMAKE_SYSROOT "${AARCH64_ROOT}")

if(AARCH64_COMPILER STREQUAL "clang")
  find_program(AARCH64_CLANG NAMES clang clang-19 clang-18 clang-17 clang-16 REQUIRED)
  set(CMAKE_C_COMPILER "${AARCH64_CLANG}")
  set(CMAKE_C_COMPILER_TARGET aarch64-linux-gnu)
else()
  set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
endif()

# Programs (Cython, the Python that runs it) are the host's; headers and libraries are the root's alone.
set(CMAKE_FIND_ROOT_PATH "${AARCH64_ROOT}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)

set(Python_INCLUDE_DIR "${AARCH64_ROOT}/usr/include/python3.11")
set(Python_NumPy_INCLUDE_DIR "${AARCH64_NUMPY}")
