# The list of kernel variants, best first: instruction set, processors it is for, compiler flags, dtypes.
# Every pair (instruction set, dtype) that the compiler can build becomes an object of csrc/kernels.c and a line of
# af_variants.h. To add an instruction set: one header csrc/simd/<name>.h and one line here.
set(ATTNFAST_VARIANTS "")
set(ATTNFAST_KERNEL_OBJECTS "")

# Target processor. On macOS, CMAKE_OSX_ARCHITECTURES may name another than that of the machine; a list of two matches
# no pattern below but _any.
set(_processor "${CMAKE_SYSTEM_PROCESSOR}")
if(APPLE AND CMAKE_OSX_ARCHITECTURES)
  set(_processor "${CMAKE_OSX_ARCHITECTURES}")
endif()

set(_x86 "^(x86_64|AMD64|amd64|i[3-6]86)$")
set(_arm64 "^(aarch64|arm64|ARM64)$")
set(_any ".*")

# Loops over accumulators are unrolled in the source, whatever the level. -O3 makes short calls and windows 2 to 5 %
# faster, but objects half as large again, and with it GCC 12 spills accumulators in the float32 tile on NEON. So only the
# variants that most calls use have it. The wheel has a limit of size, so that on processors without a vector header of
# their own 16-bit types and float64 have -Os (Zen 4, 16-bit: 12 % faster to 4 % slower in prefill; float64: 10 % slower
# in decoding). No unwind tables: kernels call nothing that unwinds. No -ffast-math: -inf and NaN are data here, and its
# link step would change how the whole process treats denormals.
set(_common -O2 -fno-asynchronous-unwind-tables -fno-math-errno -fno-trapping-math -ffp-contract=off)
set(_at_o3 f32_avx512 f32_avx2)
set(_at_os f16_generic bf16_generic f64_generic)

function(attnfast_isa isa processors)
  cmake_parse_arguments(ARG "" "" "FLAGS;DTYPES" ${ARGN})
  if(NOT _processor MATCHES "${processors}")
    return()
  endif()
  if(ARG_FLAGS)
    string(REPLACE ";" " " CMAKE_REQUIRED_FLAGS "${ARG_FLAGS}")
    check_c_source_compiles("int main(void) { return 0; }" ATTNFAST_COMPILER_HAS_${isa})
    if(NOT ATTNFAST_COMPILER_HAS_${isa})
      return()
    endif()
  endif()
  set(numbers_f32 0)
  set(numbers_f64 1)
  set(numbers_f16 2)
  set(numbers_bf16 3)
  foreach(dtype IN LISTS ARG_DTYPES)
    set(target kernels_${dtype}_${isa})
    add_library(${target} OBJECT csrc/kernels.c)
    target_compile_options(${target} PRIVATE ${_common} ${ARG_FLAGS})
    if("${dtype}_${isa}" IN_LIST _at_o3)
      target_compile_options(${target} PRIVATE -O3)
    elseif("${dtype}_${isa}" IN_LIST _at_os)
      target_compile_options(${target} PRIVATE -Os)
    endif()
    target_compile_definitions(
      ${target} PRIVATE AF_ISA=${isa} AF_TYPE=${dtype} AF_DTYPE=${numbers_${dtype}}
                        AF_SIMD_HEADER="simd/${isa}.h")
    target_include_directories(${target} PRIVATE csrc)
    target_link_libraries(${target} PRIVATE attnfast_flags)
    list(APPEND ATTNFAST_VARIANTS "X(${dtype}, ${isa})")
    list(APPEND ATTNFAST_KERNEL_OBJECTS $<TARGET_OBJECTS:${target}>)
  endforeach()
  set(ATTNFAST_VARIANTS "${ATTNFAST_VARIANTS}" PARENT_SCOPE)
  set(ATTNFAST_KERNEL_OBJECTS "${ATTNFAST_KERNEL_OBJECTS}" PARENT_SCOPE)
endfunction()

attnfast_isa(avx512 "${_x86}" FLAGS -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c
             DTYPES f32 f64 f16 bf16)
attnfast_isa(avx2 "${_x86}" FLAGS -mavx2 -mfma -mf16c DTYPES f32 f64 f16 bf16)
# GCC 12 reorders AArch64 code before it assigns registers, unlike x86 code: it then loads all elements of a tile's step
# first and spills accumulators.
set(_neon "")
if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
  set(_neon FLAGS -fno-schedule-insns)
endif()
attnfast_isa(neon "${_arm64}" ${_neon} DTYPES f32 f64 f16 bf16)
attnfast_isa(generic "${_any}" DTYPES f32 f64 f16 bf16)

string(REPLACE ";" " " _variants "${ATTNFAST_VARIANTS}")
file(CONFIGURE OUTPUT af_variants.h CONTENT "#define AF_VARIANTS(X) @_variants@\n" @ONLY)
